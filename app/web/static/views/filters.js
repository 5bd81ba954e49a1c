/** Filters of pictures. Each is a parameter of the address, by the name that the API gives it. */

import { html } from "htm/preact";
import { useState } from "preact/hooks";

import { ago } from "../format.js";
import { address, setQuery } from "../router.js";

const SPLITS = [["train", "Training"], ["test", "Test"]];
const FLAGS = [["true", "Flagged"], ["false", "Not flagged"]];
const ACTIONS = ["unreviewed", "relabelled", "confirmed", "excluded"].map((name) => [name, name]);
const ORDERS = [["score", "Most suspicious first"], ["path", "By path"]];
const ROOMY = "(min-width: 48rem)";
export const NAMES = ["q", "label", "predicted", "model", "is_label_issue", "action", "split", "order_by"];

export function Filters({ dataset, jobs }) {
  const { query } = address.value;
  const classes = dataset.classes.map((name) => [name, name]);
  const [text, setText] = useState(query.get("q") ?? "");
  const any = NAMES.some((name) => query.get(name));
  const [open] = useState(() => matchMedia(ROOMY).matches); // on a phone they would fill the window before the first picture
  return html`<details class="more" open=${open}><summary>Filters</summary><form class="filters" role="search" aria-label="Filters" onSubmit=${(event) => (event.preventDefault(), setQuery({ q: text.trim() }))}>
    <div class="field"><label for="filter-q">Text in the path</label>
      <input id="filter-q" type="search" value=${text} maxlength="200" onInput=${(event) => setText(event.target.value)} onChange=${() => setQuery({ q: text.trim() })} /></div>
    <${Choice} name="label" title="Given label" options=${classes} />
    ${jobs.length > 0 && html`<${Choice} name="predicted" title="Suggested label" options=${classes} />
      <${Choice} name="model" title="Model's answer" options=${classes} />
      <${Choice} name="is_label_issue" title="Flag" options=${FLAGS} />`}
    <${Choice} name="action" title="Reviewed" options=${ACTIONS} />
    <${Choice} name="split" title="Split" options=${SPLITS} />
    ${jobs.length > 0 && html`<${Choice} name="order_by" title="Order" any="By number" options=${ORDERS} />`}
    ${jobs.length > 1 && html`<${Choice} name="job" title="Findings of" any="The newest training" options=${jobs.map((job) => [job.id, `${job.title}, ${ago(job.created_at)}`])} />`}
    ${any && html`<button type="button" class="quiet-button" onClick=${() => (setText(""), setQuery(Object.fromEntries(NAMES.map((name) => [name, null]))), document.getElementById("filter-q").focus())}>Clear</button>`}
  </form></details>`;
}

function Choice({ name, title, options, any = "All" }) {
  const chosen = address.value.query.get(name) ?? "";
  return html`<div class="field"><label for=${`filter-${name}`}>${title}</label>
    <select id=${`filter-${name}`} value=${chosen} onChange=${(event) => setQuery({ [name]: event.target.value })}>
      <option value="">${any}</option>
      ${options.map(([value, text]) => html`<option value=${value} selected=${value === chosen}>${text}</option>`)}
    </select></div>`;
}
