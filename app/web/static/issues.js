/** The labels that look wrong, worst first, as a gallery: the picture, its given label, the predicted one. */

import { getPage, imageAddress } from "./api.js";
import { fill, focusItem, h } from "./dom.js";
import { save } from "./files.js";
import { number, percent } from "./format.js";
import { show } from "./problems.js";

const FIRST = 24; // cards
const MORE = 96;

/** A promise of the section. */
export async function labelIssues(job) {
  const place = h("section", { class: "issues", "aria-label": "Label issues" });
  await load(place, job, null, []).catch((error) => show(place, error));
  return place;
}

async function load(place, job, cursor, before) {
  const path = `/jobs/${job.id}/label-issues`;
  const page = await getPage(path, cursor ? MORE : FIRST, cursor);
  const cards = await Promise.all(page.items.map((issue, at) => card(job, issue, before.length + at + 1, page.total)));
  const all = [...before, ...cards];
  const problem = h("div", {});
  fill(place,
    h("h2", {}, "Labels that look wrong"),
    h("p", { class: "quiet" }, heading(job, page)),
    h("ul", { class: "gallery" }, all),
    h("div", { class: "actions" },
      page.next_cursor && h("button", { type: "button", on: { click: () => load(place, job, page.next_cursor, all).then(() => focusItem(place, ".gallery li", all.length)).catch((error) => show(problem, error)) } }, "Show more"),
      h("button", { type: "button", class: "quiet-button", on: { click: () => save(path, `label-issues-${job.id}.csv`, problem, "text/csv") } }, "Save as CSV")),
    problem);
}

function heading(job, page) {
  const rate = job.metrics?.estimated_noise_rate, interval = job.metrics?.noise_rate_interval;
  const between = interval ? ` (${percent(interval[0])} to ${percent(interval[1])})` : "";
  return [
    typeof rate === "number" && `About ${percent(rate)} of the given labels seem wrong${between};`,
    job.metrics?.noise_rate_withheld && `How many labels are wrong is not told. ${job.metrics.noise_rate_withheld}`,
    `${number(page.issues)} of ${number(page.total)} are flagged.`,
    "The most suspicious come first: the given label struck through, the predicted one below it.",
  ].filter(Boolean).join(" ");
}

async function card(job, issue, rank, total) {
  const address = await imageAddress(`/datasets/${job.dataset_id}/images/${issue.index}/thumbnail`).catch(() => "");
  return h("li", { class: issue.is_label_issue ? "issue" : "" },
    h("img", { src: address, alt: `Training picture ${issue.index}`, loading: "lazy", width: 96, height: 96 }),
    h("p", {}, h("span", { class: "given" }, breakable(issue.given_label)), h("span", { class: "unseen" }, " is given, predicted is "), h("span", { class: "predicted" }, breakable(issue.predicted_label))),
    h("p", { class: "quiet small" }, `rank ${number(rank)} of ${number(total)}`));
}

/** A name that breaks after "_" and "-", not in the middle of a word. */
const breakable = (name) => String(name ?? "no label").split(/(?<=[_-])/).flatMap((part, at) => (at ? [h("wbr"), part] : [part]));
