/** What a comparison of trainings says: accuracies, differences with their intervals, and the pictures whose answer changed. */

import { html } from "htm/preact";

import { get } from "../api.js";
import { number, percent, plural } from "../format.js";
import { namesOf } from "../names.js";
import { ProblemBlock, useResource } from "../resource.js";
import { DatasetPicture } from "../thumbnail.js";

const SHOWN = 48; // changed pictures
const JUDGES = { test: "test pictures", clean_validation: "held-out pictures with a true or confirmed label", noisy_validation: "held-out pictures and their given labels, some of which may be wrong" };

/** `jobs` are ids; the first is what the others are compared with. */
export function Comparison({ jobs }) {
  return html`<${Compared} ...${useResource(() => loadComparison(jobs), [jobs.join()])} />`;
}

export async function loadComparison(jobs) {
  const comparison = await get(`/comparisons?${new URLSearchParams([...jobs.map((id) => ["job", id]), ["limit", SHOWN]])}`);
  return { ...comparison, names: await namesOf(comparison.jobs) };
}

/** What `loadComparison` gave, or its problem. */
export function Compared({ data, problem }) {
  if (!data) return html`<${ProblemBlock} problem=${problem} />`;
  const title = (job) => job.name ?? `${data.names.method(job)}, ${job.network}, labels ${job.label_version}`;
  const name = (id) => title(data.jobs.find((job) => job.id === id));
  return html`<section class="panel" aria-label="Comparison">
    ${data.differences.map((entry) => html`<p class="verdict-line" key=${entry.job}>${verdict(entry, name(entry.job), title(data.jobs[0]))}</p>`)}
    <p class="quiet">Judged by ${number(data.images)} ${JUDGES[data.judged_by]}; labels version ${data.label_version}. The interval is of 95 %.</p>
    <div class="table-scroll" tabindex="0" role="group" aria-label="Table"><table><caption class="unseen">Trainings</caption>
      <thead><tr><th scope="col">Training</th><th scope="col" class="number">Accuracy</th><th scope="col" class="number">Interval</th><th scope="col" class="number">Difference</th><th scope="col" class="number">Interval</th><th scope="col" class="number">Corrected</th><th scope="col" class="number">Broken</th></tr></thead>
      <tbody>${data.jobs.map((job) => line(job, title(job), data.differences.find((entry) => entry.job === job.id)))}</tbody></table></div>
    <h2>${data.changed ? `${plural(data.changed, "picture")} whose answer changed` : "No answer changed"}</h2>
    <ul class="changes">${data.items.map((item) => html`<li key=${item.index}><${DatasetPicture} dataset=${data.dataset_id} index=${item.index} alt="" />
      <span><span class="path">${item.label}: ${item.path}</span>${item.predictions.map((label, at) => html`${at > 0 && " → "}<span class=${label === item.label ? "right" : "wrong"}>${label}</span>`)}</span></li>`)}</ul>
    ${data.next_cursor && html`<p class="quiet">The first ${SHOWN}.</p>`}
  </section>`;
}

const points = (share) => `${share > 0 ? "+" : ""}${number(100 * share, 1)}`;

/** The difference in a sentence that says whether it is more than chance. */
function verdict({ difference, interval: [low, high], corrected, broken }, name, first) {
  const sure = low > 0 ? "better than" : high < 0 ? "worse than" : "not clearly different from";
  return `“${name}” is ${sure} “${first}”: ${points(difference)} points (${points(low)} to ${points(high)}); ${number(corrected)} corrected, ${number(broken)} broken.`;
}

function line(job, title, difference) {
  const cells = difference ? [points(difference.difference), `${points(difference.interval[0])} to ${points(difference.interval[1])}`, number(difference.corrected), number(difference.broken)] : ["", "", "", ""];
  return html`<tr key=${job.id}><th scope="row"><a href=${`/ui/jobs/${job.id}`}>${title}</a></th><td class="number">${percent(job.accuracy)}</td>
    <td class="number">${percent(job.interval[0])} to ${percent(job.interval[1])}</td>${cells.map((text) => html`<td class="number">${text}</td>`)}</tr>`;
}
