/** The pictures of a data set: filters, which stand in the address, the grid, and those chosen in it for a review. */

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { number, plural } from "../format.js";
import { pagedItems } from "../paged.js";
import { ProblemBlock } from "../resource.js";
import { address, navigate } from "../router.js";
import { keepSelection } from "../selection.js";
import { Filters, NAMES } from "./filters.js";
import { PictureGrid } from "./picture_grid.js";

export function Pictures({ dataset, jobs }) {
  const { query } = address.value;
  const job = query.get("job") ?? jobs[0]?.id;
  const request = new URLSearchParams([...NAMES].flatMap((name) => (query.get(name) ? [[name, query.get(name)]] : [])));
  const filtered = request.size > 0;
  if (job) request.set("job", job);
  const path = `/datasets/${dataset.id}/images?${request}`;
  const pages = useMemo(() => pagedItems(path), [path]);
  const [chosen, setChosen] = useState(null); // a Set of numbers while pictures are being chosen
  useEffect(() => setChosen(null), [job]);

  const count = pages.count.value;
  const total = pages.done.value ? number(count) : filtered ? `${number(count)} or more` : number(Math.max(dataset.images, count));
  const choose = (indices, on) => setChosen((before) => {
    const after = new Set(before);
    for (const index of indices) after[on ? "add" : "delete"](index);
    return after;
  });
  return html`<${Filters} dataset=${dataset} jobs=${jobs} />
    <div class="grid-head"><p class="quiet" role="status">${count || pages.done.value ? `${total} pictures` : " "}</p>
      ${job && html`<div class="actions">${chosen && html`<span class="quiet small">${`${number(chosen.size)} chosen. Drag over pictures to choose several.`}</span>
        <button type="button" class="small primary" disabled=${!chosen.size} onClick=${() => navigate(`/ui/review/${job}?selection=${keepSelection([...chosen])}`)}>${`Review ${plural(chosen.size, "picture")}`}</button>`}
        <button type="button" class="small" aria-pressed=${chosen !== null} onClick=${() => setChosen(chosen ? null : new Set())}>Choose pictures</button></div>`}</div>
    <${ProblemBlock} problem=${pages.problem.value} />
    ${pages.done.value && !count && html`<p class="empty panel">No picture fits these filters.</p>`}
    <${PictureGrid} dataset=${dataset} job=${job} pages=${pages} label="Pictures" chosen=${chosen} choose=${choose} />`;
}
