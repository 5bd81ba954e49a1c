/** Accepting all flags of a class below a score, with a preview of what that changes. */

import { html } from "htm/preact";
import { useState } from "preact/hooks";

import { post } from "../api.js";
import { number, plural } from "../format.js";
import { ProblemBlock, useAction, useResource } from "../resource.js";
import { DatasetPicture } from "../thumbnail.js";
import { Dialog } from "./dialog.js";

export function Bulk({ dataset, job, draft, closed }) {
  const [where, setWhere] = useState({ class: "", predicted_label: "", label_score_below: 0.5 });
  const [action, setAction] = useState("relabel");
  const { busy, problem, run } = useAction();
  const accepted = {
    job: job.id, action,
    where: { label_score_below: Number(where.label_score_below), ...(where.class && { class: where.class }), ...(where.predicted_label && { predicted_label: where.predicted_label }) },
  };
  const text = JSON.stringify(accepted);
  const preview = useResource(() => post(`/datasets/${dataset.id}/labels?dry_run=true`, { accept: accepted }), [text]);
  const change = (name) => (event) => setWhere({ ...where, [name]: event.target.value });
  const classes = (name, title) => html`<div class="field"><label for=${`bulk-${name}`}>${title}</label><select id=${`bulk-${name}`} value=${where[name]} onChange=${change(name)}>
    <option value="">Any</option>${dataset.classes.map((entry) => html`<option value=${entry}>${entry}</option>`)}</select></div>`;
  const take = () => run(async () => {
    await draft.accept(accepted);
    closed();
  });
  const edits = preview.data?.edits ?? 0;
  return html`<${Dialog} title="Accept many flags" closed=${closed}>
    <div class="fields">${classes("class", "Given label")}${classes("predicted_label", "Suggested label")}
      <div class="field"><label for="bulk-score">Label score below ${number(Number(where.label_score_below), 2)}</label>
        <input id="bulk-score" type="range" min="0" max="1" step="0.01" value=${where.label_score_below} onChange=${change("label_score_below")} /></div>
      <div class="field"><label for="bulk-action">What to do</label><select id="bulk-action" value=${action} onChange=${(event) => setAction(event.target.value)}>
        <option value="relabel">Take the suggested label</option><option value="exclude">Exclude the picture</option></select></div></div>
    <${ProblemBlock} problem=${preview.problem ?? problem} />
    <p role="status">${preview.data ? `${plural(edits, "label")} would change.` : " "}</p>
    <ul class="changes">${(preview.data?.sample ?? []).filter((edit) => edit.image !== null).slice(0, 12).map((edit) => html`<li key=${edit.image}><${DatasetPicture} dataset=${dataset.id} index=${edit.image} alt="" />
      <span><span class="given">${edit.from}</span> <strong>${edit.to ?? "excluded"}</strong></span></li>`)}</ul>
    <div class="actions"><button type="button" class="primary" disabled=${busy || !edits} onClick=${take}>${`Accept ${plural(edits, "flag")}`}</button>
      <span class="field-help">They join the draft as one step that Undo takes back.</span></div>
  <//>`;
}
