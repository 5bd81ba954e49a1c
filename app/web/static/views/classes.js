/** The classes of a data set with their numbers of pictures, each leading to its pictures. */

import { html } from "htm/preact";

import { number } from "../format.js";

export function Classes({ dataset }) {
  const { train, test } = dataset.counts;
  const largest = Math.max(1, ...Object.values(train));
  return html`<div class="table-scroll" tabindex="0" role="group" aria-label="Table"><table>
    <caption class="unseen">Pictures by class, without excluded ones</caption>
    <thead><tr><th scope="col">Class</th><th scope="col" class="number">Training</th><th scope="col" class="number">Test</th><th scope="col" class="bar-column"><span class="unseen">Share of the largest</span></th></tr></thead>
    <tbody>${dataset.classes.map((name) => html`<tr>
      <th scope="row"><a href=${`/ui/datasets/${dataset.id}?label=${encodeURIComponent(name)}`}>${name}</a></th>
      <td class="number">${number(train[name] ?? 0)}</td><td class="number">${number(test[name] ?? 0)}</td>
      <td><span class="compare-bar" aria-hidden="true" style=${{ "--share": (train[name] ?? 0) / largest }}></span></td></tr>`)}</tbody>
  </table></div>`;
}
