/** The pictures of a data set: filters, which stand in the address, and the grid. */

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { number } from "../format.js";
import { Grid } from "../grid.js";
import { pagedItems } from "../paged.js";
import { ProblemBlock } from "../resource.js";
import { address } from "../router.js";
import { DatasetPicture } from "../thumbnail.js";
import { Filters, NAMES } from "./filters.js";
import { Zoom } from "./zoom.js";

export function Pictures({ dataset, jobs }) {
  const { query } = address.value;
  const job = query.get("job") ?? jobs[0]?.id;
  const request = new URLSearchParams([...NAMES].flatMap((name) => (query.get(name) ? [[name, query.get(name)]] : [])));
  const filtered = request.size > 0;
  if (job) request.set("job", job);
  const path = `/datasets/${dataset.id}/images?${request}`;
  const pages = useMemo(() => pagedItems(path), [path]);
  const [active, setActive] = useState({ place: 0 });
  const [opened, setOpened] = useState(null);
  useEffect(() => {
    setActive({ place: 0 });
    return pages.close;
  }, [pages]);

  const count = pages.count.value;
  const total = pages.done.value ? number(count) : filtered ? `${number(count)} or more` : number(Math.max(dataset.images, count));
  return html`<${Filters} dataset=${dataset} jobs=${jobs} />
    <p class="quiet" role="status">${count || pages.done.value ? `${total} pictures` : " "}</p>
    <${ProblemBlock} problem=${pages.problem.value} />
    ${pages.done.value && !count && html`<p class="empty panel">No picture fits these filters.</p>`}
    <${Grid} pages=${pages} label="Pictures" width=${132} caption=${44} active=${active} setActive=${setActive} opened=${setOpened}
      name=${(item) => `${item.path}: ${item.given_label ?? "no label"}${flagged(item) ? `, ${item.findings.predicted_label} suggested` : ""}`}
      cell=${(item) => html`<${DatasetPicture} dataset=${dataset.id} index=${item.index} alt="" /><span class="cell-label">${item.given_label ?? "no label"}</span>
        <span class=${`cell-note ${flagged(item) ? "flag" : ""}`}>${note(item)}</span>`} />
    ${opened !== null && html`<${Zoom} dataset=${dataset} pages=${pages} place=${opened} job=${job}
      moved=${setOpened} closed=${() => (setActive({ place: opened, focus: true }), setOpened(null))} />`}`;
}

const flagged = (item) => item.findings?.is_label_issue === true && item.action === "unreviewed";

function note(item) {
  if (item.action !== "unreviewed") return item.action;
  return flagged(item) ? `→ ${item.findings.predicted_label}` : item.split === "test" ? "test" : "";
}
