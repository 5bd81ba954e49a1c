/** The pictures most like one, with their labels. */

import { html } from "htm/preact";

import { get } from "../api.js";
import { percent } from "../format.js";
import { useResource } from "../resource.js";
import { DatasetPicture } from "../thumbnail.js";

const SHOWN = 8;
const WAIT_MS = 120; // nothing is asked for of pictures that are only passed

export function Neighbours({ dataset, job, item }) {
  const { data } = useResource(async () => {
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    return { of: item.index, items: (await get(`/datasets/${dataset.id}/images?job=${job.id}&like=${item.index}&limit=${SHOWN}`)).items };
  }, [item.index]);
  const similar = data?.of === item.index ? data.items : null;
  return html`<section class="neighbours" aria-label="Most similar pictures"><h3>Most similar</h3>
    <ul>${similar ? similar.map((other) => html`<li key=${other.index}><${DatasetPicture} dataset=${dataset.id} index=${other.index} alt=${other.path} />
      <span class=${other.given_label === item.given_label ? "same" : "other"}>${other.given_label ?? "no label"}</span><span class="quiet">${percent(other.similarity, 0)}</span></li>`)
      : Array.from({ length: SHOWN }, () => html`<li aria-hidden="true"><img alt="" /><span> </span><span> </span></li>`)}</ul>
    ${similar?.length === 0 && html`<p class="quiet small">This job has no neighbours of it.</p>`}
  </section>`;
}
