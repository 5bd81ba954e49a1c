/** Details of a ready data set: its classes, the warnings of ingest, and the report on request. */

import { getItems } from "./api.js";
import { fill, focusItem, h } from "./dom.js";
import { save } from "./files.js";
import { number, plural, words } from "./format.js";
import { show } from "./problems.js";

const CLASSES_SHOWN = 10;
const ENTRIES_SHOWN = 20;
const WARNINGS_SHOWN = 3;

/** One bar a class, as long as its share of the largest class. */
export function classBars(item) {
  const counts = (item.classes || []).map((name) => [name, item.counts.train[name] || 0]);
  if (!counts.some(([, count]) => count > 0)) return null;
  const largest = Math.max(...counts.map(([, count]) => count));
  const rest = counts.length - CLASSES_SHOWN;
  return h("ul", { class: "class-bars", "aria-label": "Training images per class" },
    counts.slice(0, CLASSES_SHOWN).map(([name, count]) =>
      h("li", { vars: { share: count / largest } }, h("span", { class: "class-name" }, name), h("span", { class: "class-count" }, number(count)))),
    rest > 0 && h("li", { class: "quiet" }, h("a", { href: `/ui/datasets/${item.id}?tab=classes` }, `and ${plural(rest, "more class", "more classes")}`)));
}

/** The first warnings of ingest and how many more its report has; false without any. */
export function warnings({ report }) {
  if (!report) return null;
  const texts = report.warnings.slice(0, WARNINGS_SHOWN).map((entry) => [entry.path, entry.detail].filter(Boolean).join(": "));
  if (report.total_warnings > texts.length) texts.push(`${plural(report.total_warnings - texts.length, "more warning")} in the report`);
  if (report.excluded) texts.unshift(`${plural(report.excluded, "image")} left out`);
  return texts.length > 0 && h("ul", { class: "warnings", "aria-label": "Warnings" }, texts.map((text) => h("li", {}, text)));
}

/** Every file that was left out, with its reason, the first `most` and then twice as many; and the whole table as CSV. */
export async function ingestReport(place, id, most = ENTRIES_SHOWN) {
  const before = place.querySelectorAll(".entries li").length;
  try {
    const { items, more } = await getItems(`/datasets/${id}/report`, most);
    fill(place,
      items.length === 0 && h("p", { class: "quiet" }, "Nothing was left out, and there are no warnings."),
      h("ul", { class: "entries" }, items.map((entry) =>
        h("li", {}, h("span", { class: "tag" }, words(entry.code).toLowerCase()), " ", entry.path && h("code", {}, entry.path), " ", h("span", { class: "quiet" }, entry.detail)))),
      more && h("button", { type: "button", class: "small", on: { click: () => ingestReport(place, id, 2 * most) } }, "Show more"), " ",
      items.length > 0 && h("button", { type: "button", class: "small", on: { click: () => save(`/datasets/${id}/report`, `report-${id}.csv`, place, "text/csv") } }, "Save as CSV"));
    if (before) focusItem(place, ".entries li", before);
  } catch (error) {
    show(place, error);
  }
}
