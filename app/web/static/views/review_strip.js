/** The pictures before and after the one that is reviewed, and what was decided of each. */

import { html } from "htm/preact";

import { DatasetPicture } from "../thumbnail.js";

const AROUND = 12;

export function Strip({ dataset, items, place, go, state, selected }) {
  const from = Math.max(0, Math.min(place - AROUND / 2, items.length - 2 * AROUND));
  return html`<ol class="strip" aria-label="Pictures before and after">${items.slice(from, from + 2 * AROUND).map((item, offset) => html`<li key=${item.index}>
    <button type="button" class="strip-item" data-state=${state(item)} aria-current=${from + offset === place ? "true" : undefined} aria-pressed=${selected.has(item.index)}
      aria-label=${`${from + offset + 1}: ${item.given_label}, ${state(item) ?? "not reviewed"}`} onClick=${() => go(from + offset)}>
      <${DatasetPicture} dataset=${dataset.id} index=${item.index} alt="" /></button></li>`)}</ol>`;
}
