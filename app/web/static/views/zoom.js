/** One picture of the grid enlarged, with all that is known of it. */

import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";

import { get } from "../api.js";
import { ago, bytes, number, percent } from "../format.js";
import { useResource } from "../resource.js";
import { DatasetPicture } from "../thumbnail.js";

/** `place` in `pages`; `moved(place)` when another one is gone to, `closed()` at the end. */
export function Zoom({ dataset, pages, place, job, moved, closed }) {
  const dialog = useRef(null);
  const item = pages.items[place];
  const of = `/datasets/${dataset.id}/images/${item.index}`;
  const { data: votes } = useResource(() => (dataset.annotators ? get(`${of}/votes`) : Promise.resolve(null)), [of]);
  const { data: history } = useResource(() => get(`${of}/history`), [of]);
  useEffect(() => dialog.current.showModal(), []);

  function step(by) {
    const to = place + by;
    if (to < 0 || to >= pages.items.length) return;
    pages.need(to + 50);
    moved(to);
  }
  function key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) event.preventDefault(), step(by);
  }
  return html`<dialog class="zoom" aria-labelledby="zoom-title" ref=${dialog} onClose=${closed} onKeyDown=${key}
      onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <header><h2 id="zoom-title">${item.path}</h2><button type="button" class="quiet-button" onClick=${() => dialog.current.close()}>Close</button></header>
    <div class="zoom-body">
      <div class="zoom-picture"><${DatasetPicture} small=${false} dataset=${dataset.id} index=${item.index} alt=${`${item.path}, labelled ${item.given_label ?? "nothing"}`} /></div>
      <div class="zoom-facts">
        <dl class="facts">
          <${Fact} name="Given label">${item.given_label ?? "none"}<//>
          ${item.clean_label && html`<${Fact} name="True label">${item.clean_label}<//>`}
          <${Fact} name="Reviewed">${item.action}<//>
          <${Fact} name="Split">${item.split}<//>
          <${Fact} name="Size">${`${number(item.width)} × ${number(item.height)} px · ${bytes(item.size_bytes)}`}<//>
          <${Fact} name="Number">${item.index}<//>
          <${Fact} name="File">${item.media_type}<//>
        </dl>
        ${item.findings && html`<section><h3>Suggested${item.findings.is_label_issue ? ", flagged" : ""}</h3>
          <ol class="scores">${item.findings.suggestions.map(({ label, confidence }) => html`<li style=${{ "--share": confidence ?? 0 }}><span class="score-label">${label}</span><span class="score-value">${percent(confidence)}</span></li>`)}</ol>
          ${job && html`<p class="small"><a href=${`/ui/jobs/${job}`}>The training that says so</a></p>`}</section>`}
        ${votes?.votes.length > 0 && html`<section><h3>Votes</h3><dl class="facts">${votes.votes.map((vote) => html`<${Fact} name=${vote.annotator}>${vote.label}<//>`)}</dl></section>`}
        ${history && html`<section><h3>History</h3><ol class="history">${history.changes.map((entry) => html`<li><span class="tag">version ${entry.version}</span>${" "}${entry.label ?? "no label"}${entry.action === "unreviewed" ? ", as uploaded" : `, ${entry.action}`}
          <span class="quiet small"> ${[entry.author, ago(entry.created_at)].filter(Boolean).join(" · ")}</span></li>`)}</ol></section>`}
      </div>
    </div>
    <footer><button type="button" disabled=${place === 0} onClick=${() => step(-1)}>Previous</button>
      <button type="button" disabled=${place + 1 >= pages.count.value} onClick=${() => step(1)}>Next</button></footer>
  </dialog>`;
}

const Fact = ({ name, children }) => html`<dt>${name}</dt><dd>${children}</dd>`;
