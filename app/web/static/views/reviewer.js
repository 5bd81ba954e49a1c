/** The review of a list of flags: which one is shown, what is decided, and what the keys do. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { announce } from "../dom.js";
import { number } from "../format.js";
import { ProblemBlock } from "../resource.js";
import { Bulk } from "./review_bulk.js";
import { Choices, choicesOf } from "./review_choices.js";
import { Finish } from "./review_finish.js";
import { KeyHelp, useKeys } from "./review_keys.js";
import { Neighbours } from "./neighbours.js";
import { Stage } from "./review_stage.js";
import { Strip } from "./review_strip.js";

export function Reviewer({ job, dataset, ranking, draft, pages, total, version, setVersion }) {
  const edits = draft.edits.value;
  const { items } = pages;
  const count = pages.count.value;
  const state = (item) => edits.get(item.index)?.action ?? (item.action === "unreviewed" ? null : item.action);
  const [place, setPlace] = useState(() => Math.max(0, items.findIndex((item) => !state(item))));
  const [selected, setSelected] = useState(new Set());
  const [mask, setMask] = useState(false);
  const [open, setOpen] = useState(null); // a dialog: keys, bulk, finish
  const stage = useRef(null);
  const item = items[place];
  const choices = choicesOf(item, dataset.classes);
  const reviewed = items.reduce((sum, entry) => sum + Number(Boolean(state(entry))), 0);

  useEffect(() => announce(`${item.path}: given ${item.given_label}, suggested ${item.findings.predicted_label}`), [item]);

  function go(to) {
    if (to < 0 || to >= items.length) return;
    setPlace(to);
    stage.current?.focus({ preventScroll: true });
  }
  function next(after) {
    const later = after.findIndex((entry, at) => at > place && !state(entry) && !selected.has(entry.index));
    go(later >= 0 ? later : Math.min(place + 1, items.length - 1));
  }
  /** Decide on what is selected, or on the picture shown; decide(item) makes its edit. */
  function act(decide) {
    const meant = selected.size ? items.filter((entry) => selected.has(entry.index)) : [item];
    draft.add(meant.map((entry) => ({ image: entry.index, from: entry.given_label, ...decide(entry) })));
    setSelected(new Set());
    next(items);
  }
  const relabel = (to) => act((entry) => (entry.given_label === to ? { action: "confirm" } : { action: "relabel", to }));
  const actions = {
    accept: () => act((entry) => (entry.findings.predicted_label === entry.given_label ? { action: "confirm" } : { action: "relabel", to: entry.findings.predicted_label })),
    confirm: () => act(() => ({ action: "confirm" })),
    exclude: () => act(() => ({ action: "exclude" })),
    choose: (at) => choices[at] && relabel(choices[at]),
    undo: async () => {
      const [first] = await draft.undo().catch(() => []);
      const at = items.findIndex((entry) => entry.index === first);
      if (at >= 0) go(at);
      else stage.current?.focus({ preventScroll: true });
    },
    previous: () => go(place - 1),
    next: () => go(place + 1),
    select: () => setSelected((before) => (before.has(item.index) ? new Set([...before].filter((index) => index !== item.index)) : new Set([...before, item.index]))),
    mask: () => setMask(!mask),
    search: () => document.getElementById("class-search").focus(),
    help: () => setOpen("keys"),
  };
  useKeys(actions, open === null);
  const closed = () => setOpen(null);
  const share = ranking.total ? Math.max(0.1, (100 * (place + 1)) / ranking.total) : null;

  return html`<div class="review-bar">
      <div class="progress-line"><progress max=${total} value=${reviewed} aria-label="Reviewed"></progress>
        <span role="status" class="review-count">${number(reviewed)} of ${number(total)} reviewed</span></div>
      <span class="quiet small saved">${draft.waiting.value ? "Saving" : edits.size ? `${number(edits.size)} in the draft` : " "}</span>
      <div class="actions">
        <button type="button" class="small" onClick=${() => setOpen("bulk")}>Accept many</button>
        <button type="button" class="small" onClick=${actions.help}>Keys</button>
        <button type="button" class="small primary" disabled=${!edits.size} onClick=${() => setOpen("finish")}>Publish</button>
      </div>
    </div>
    <${ProblemBlock} problem=${draft.problem.value} />
    <${Strip} dataset=${dataset} items=${items} place=${place} go=${go} state=${state} selected=${selected} />
    <div class="review-body">
      <div class="review-stage" tabindex="0" role="group" aria-label=${`Picture ${place + 1} of ${count}`} ref=${stage}>
        <${Stage} dataset=${dataset} job=${job} item=${item} mask=${mask} following=${items.slice(place + 1, place + 4)} />
        <button type="button" class="small mask-button" aria-pressed=${mask} onClick=${actions.mask}>Mask</button>
      </div>
      <div class="review-side">
        <div><h2 class="path">${item.path}</h2>
          <p class="quiet small">${`${number(place + 1)} of ${number(count)} shown`}${total === ranking.issues && share !== null ? `, among the most suspicious ${number(share, share < 10 ? 1 : 0)} % of ${number(ranking.total)} labels` : ""}</p></div>
        <${Choices} item=${item} choices=${choices} classes=${dataset.classes} decided=${edits.get(item.index) ?? (item.action === "unreviewed" ? null : { action: item.action, to: null })} relabel=${relabel} back=${() => stage.current?.focus()} />
        <div class="review-actions">
          <button type="button" class="primary" onClick=${actions.accept}>Accept <kbd>Enter</kbd></button>
          <button type="button" onClick=${actions.confirm}>Confirm <kbd>C</kbd></button>
          <button type="button" onClick=${actions.exclude}>Exclude <kbd>X</kbd></button>
          <button type="button" onClick=${actions.undo}>Undo <kbd>U</kbd></button>
        </div>
        <${Neighbours} dataset=${dataset} job=${job} item=${item} />
      </div>
    </div>
    ${open === "keys" && html`<${KeyHelp} closed=${closed} />`}
    ${open === "bulk" && html`<${Bulk} ...${{ dataset, job, draft, closed }} />`}
    ${open === "finish" && html`<${Finish} ...${{ dataset, job, draft, version, setVersion, closed }} />`}`;
}
