/** Versions of a data set's labels: what each changed, and going back to an earlier one. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { getItems, post } from "../api.js";
import { announce, focusItem } from "../dom.js";
import { ago, number, plural } from "../format.js";
import { ProblemBlock, useAction, useResource } from "../resource.js";
import { DatasetPicture } from "../thumbnail.js";

const SHOWN = 50; // changes; as many again on request
const COUNTS = ["relabelled", "confirmed", "excluded"];

export function Labels({ dataset, changed }) {
  const { data, problem } = useResource(() => getItems(`/datasets/${dataset.id}/labels`, 200), [dataset.id]);
  const [opened, setOpened] = useState(null);
  if (!data) return html`<${ProblemBlock} problem=${problem} />`;
  const versions = data.items;
  return html`<ol class="rows" aria-label="Label versions">${versions.map((entry, place) => html`<li class="row" key=${entry.version}>
    <div class="row-head"><h2 class="row-name">Version ${entry.version}</h2>${place === 0 && html`<span class="status" data-status="ready">newest</span>`}
      <div class="row-actions">
        ${entry.version > 1 && html`<button type="button" class="small" aria-expanded=${opened === entry.version} onClick=${() => setOpened(opened === entry.version ? null : entry.version)}>What it changed</button>`}
        ${place > 0 && html`<${Revert} dataset=${dataset} version=${entry.version} changed=${changed} />`}
      </div></div>
    <p class="quiet">${about(entry)}</p>
    ${entry.note && html`<p>${entry.note}</p>`}
    ${opened === entry.version && html`<${Diff} dataset=${dataset} from=${entry.parent ?? entry.version - 1} to=${entry.version} />`}
  </li>`)}</ol>`;
}

function about({ source, edits, counts, author, created_at: time }) {
  const totals = COUNTS.filter((name) => counts[name]).map((name) => `${number(counts[name])} ${name} in all`);
  return [source === "upload" ? "as uploaded" : `${source}, ${plural(edits, "edit")}`, ...totals, author, ago(time)].filter(Boolean).join(" · ");
}

function Revert({ dataset, version, changed }) {
  const { busy, problem, run } = useAction();
  const revert = () => run(async () => {
    const made = await post(`/datasets/${dataset.id}/labels/${version}/revert`);
    announce(`Version ${made.version} has the labels of version ${version}`);
    changed();
  });
  return html`<button type="button" class="small" disabled=${busy} onClick=${revert}>Go back to it</button><${ProblemBlock} problem=${problem} />`;
}

function Diff({ dataset, from, to }) {
  const [most, setMost] = useState(SHOWN);
  const path = `/datasets/${dataset.id}/labels/diff?from=${from}&to=${to}`;
  const { data, problem } = useResource(() => getItems(path, most), [path, most]);
  const place = useRef(null);
  const before = useRef(0); // items there were when more were asked for
  useEffect(() => {
    if (before.current) focusItem(place.current, ".changes li", before.current);
    before.current = 0;
  }, [data]);
  if (!data) return html`<${ProblemBlock} problem=${problem} /><p class="quiet">Comparing</p>`;
  const { classes_added: added, classes_removed: removed } = data.last;
  return html`<div class="diff" ref=${place}>
    ${added.length > 0 && html`<p>Classes added: ${added.join(", ")}</p>`}${removed.length > 0 && html`<p>Classes removed: ${removed.join(", ")}</p>`}
    <ul class="changes" aria-label=${`Changes of version ${to}`}>${data.items.map((item) => html`<li key=${item.index}>
      <${DatasetPicture} dataset=${dataset.id} index=${item.index} alt="" />
      <span><span class="path">${item.path}</span> ${change(item)}</span></li>`)}</ul>
    ${!data.items.length && html`<p class="quiet">No label differs.</p>`}
    ${data.more && html`<button type="button" class="small" onClick=${() => ((before.current = data.items.length), setMost(most * 2))}>Show more</button>`}
  </div>`;
}

function change({ from, to, action, action_before: before }) {
  if (from !== to) return html`<span class="given">${from ?? "no label"}</span> <strong>${to ?? "no label"}</strong>`;
  return html`<span class="tag">${before}</span> → <span class="tag">${action}</span> ${to}`;
}
