/** Pictures of a data set in a grid, each enlarged when it is pressed, or chosen while pictures are being chosen. */

import { html } from "htm/preact";
import { useEffect, useState } from "preact/hooks";

import { Grid } from "../grid.js";
import { DatasetPicture } from "../thumbnail.js";
import { Zoom } from "./zoom.js";

/** `pages` are of paged.js; `chosen` is a Set of numbers of images, with choose(indices, on); without it none can be chosen. */
export function PictureGrid({ dataset, job, pages, label, chosen, choose }) {
  const [active, setActive] = useState({ place: 0 });
  const [opened, setOpened] = useState(null);
  useEffect(() => {
    setActive({ place: 0 });
    return pages.close;
  }, [pages]);
  return html`<${Grid} pages=${pages} label=${label} width=${132} caption=${44} active=${active} setActive=${setActive} opened=${setOpened} chosen=${chosen} choose=${choose}
      name=${(item) => `${item.path}: ${item.given_label ?? "no label"}${flagged(item) ? `, ${item.findings.predicted_label} suggested` : ""}`}
      cell=${(item, still) => html`${still ? html`<${DatasetPicture} dataset=${dataset.id} index=${item.index} alt="" />` : html`<span class="cell-blank"></span>`}<span class="cell-label">${item.given_label ?? "no label"}</span>
        <span class=${`cell-note ${flagged(item) ? "flag" : ""}`}>${note(item)}</span>`} />
    ${opened !== null && html`<${Zoom} dataset=${dataset} pages=${pages} place=${opened} job=${job}
      moved=${setOpened} closed=${() => (setActive({ place: opened, focus: true }), setOpened(null))} />`}`;
}

const flagged = (item) => item.findings?.is_label_issue === true && item.action === "unreviewed";

function note(item) {
  if (item.action !== "unreviewed") return item.action;
  return flagged(item) ? `→ ${item.findings.predicted_label}` : item.split === "test" ? "test" : "";
}
