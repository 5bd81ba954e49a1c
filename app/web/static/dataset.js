/** What one ready data set shows of itself: its classes, the warnings of ingest, and the report on request. */

import { blob, get } from "./api.js";
import { fill, h } from "./dom.js";
import { number, plural, words } from "./format.js";
import { show } from "./problems.js";

const CLASSES_SHOWN = 10;
const ENTRIES_SHOWN = 20;

/** One bar a class, as long as its share of the largest class. */
export function classBars(item) {
  const counts = (item.classes || []).map((each) => [nameOf(each), countOf(item, each)]);
  if (!counts.some(([, count]) => count > 0)) return null;
  const largest = Math.max(...counts.map(([, count]) => count));
  const rest = counts.length - CLASSES_SHOWN;
  return h("ul", { class: "class-bars", "aria-label": "Training images per class" },
    counts.slice(0, CLASSES_SHOWN).map(([name, count]) =>
      h("li", { vars: { share: count / largest } }, h("span", { class: "class-name" }, name), h("span", { class: "class-count" }, number(count)))),
    rest > 0 && h("li", { class: "quiet" }, `and ${plural(rest, "more class", "more classes")}`));
}

const nameOf = (each) => (typeof each === "string" ? each : each.name);

function countOf(item, each) {
  if (typeof each === "object" && each.counts) return each.counts.train ?? 0;
  return item.counts?.train?.[nameOf(each)] ?? 0;
}

/** The report's summary in one quiet paragraph; nothing when there is nothing to say. */
export function warnings(item) {
  const report = item.report || {};
  const texts = (report.warnings || []).map((each) => (typeof each === "string" ? each : each.detail));
  const counts = Object.entries(report)
    .filter(([, value]) => typeof value === "number" && value > 0)
    .map(([key, value]) => `${words(key).toLowerCase()}: ${number(value)}`);
  if (!texts.length && !counts.length) return null;
  return h("ul", { class: "warnings", "aria-label": "Warnings" }, [...texts, ...counts].map((text) => h("li", {}, text)));
}

/** Every file that was left out, with its reason; and the whole table as CSV. */
export async function ingestReport(place, id) {
  try {
    const report = await get(`/datasets/${id}/report?limit=${ENTRIES_SHOWN}`);
    const items = report.items || [];
    fill(place,
      items.length === 0 && h("p", { class: "quiet" }, "Nothing was left out, and nothing looks odd."),
      h("ul", { class: "entries" }, items.map((each) =>
        h("li", {}, h("span", { class: "tag" }, words(each.code).toLowerCase()), " ", each.path && h("code", {}, each.path), " ", h("span", { class: "quiet" }, each.detail)))),
      items.length > 0 && h("button", { type: "button", class: "small", on: { click: () => save(`/datasets/${id}/report`, `report-${id}.csv`, place) } }, "Save as CSV"));
  } catch (error) {
    show(place, error);
  }
}

/** A download that carries the key: fetched, then offered as a file. */
export async function save(path, filename, place) {
  try {
    const address = URL.createObjectURL(await blob(path, { Accept: "text/csv" }));
    h("a", { href: address, download: filename }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch (error) {
    show(place, error);
  }
}
