/** The section of data sets: the list, with the findings of ingest, and the upload form. Knows nothing of jobs. */

import { remove } from "./api.js";
import { classBars, ingestReport, warnings } from "./dataset.js";
import { announce, fill, h, write } from "./dom.js";
import { ago, bytes, number, percent, plural, words } from "./format.js";
import { pagedList } from "./lists.js";
import { problemBlock, show } from "./problems.js";
import { uploadForm } from "./upload.js";

const BUSY = ["ingesting"];

export function datasets() {
  const form = uploadForm(() => list.refresh());
  const list = pagedList({
    path: "/datasets",
    list: document.getElementById("dataset-list"),
    more: document.getElementById("datasets-more"),
    problem: document.getElementById("datasets-problem"),
    rows: (item) => datasetRow(item, () => list.refresh(), form.offerColumns),
    empty: () => h("li", { class: "empty" }, "No data sets yet. Upload one above; it takes a minute."),
    busy: (items) => items.some((item) => BUSY.includes(item.status)),
    quickMs: 1000,
    slowMs: 30000,
  });
  list.refresh();
  return list.close;
}

function datasetRow(first, refresh, offerColumns) {
  const name = h("a", { href: `/ui/datasets/${first.id}` });
  const status = h("span", { class: "status" });
  const facts = h("p", { class: "quiet" });
  const body = h("div", {});
  const problem = h("div", {});
  const report = h("div", { class: "report" });
  const details = h("details", { class: "more", hidden: true, on: { toggle: () => details.open && ingestReport(report, first.id) } },
    h("summary", {}, "Report"), report);
  const train = h("a", { class: "button small", href: `/ui/train?dataset=${first.id}`, hidden: true }, "Train on it");
  const button = h("button", { type: "button", class: "small quiet-button", on: { click: drop } }, "Delete");
  const element = h("li", { class: "row dataset" }, h("div", { class: "row-head" }, h("h2", { class: "row-name" }, name), status, h("div", { class: "row-actions" }, train, button)), facts, body, details, problem);
  let previous = "";

  async function drop() {
    if (!window.confirm(`Delete the data set “${name.textContent}” and its files?`)) return;
    try {
      await remove(`/datasets/${first.id}`);
      announce(`${name.textContent} deleted`);
      await refresh();
    } catch (error) {
      show(problem, error);
    }
  }

  function update(item) {
    train.hidden = item.status !== "ready";
    write(name, item.name);
    write(status, item.status);
    status.dataset.status = item.status;
    write(facts, summary(item));
    if (previous && previous !== item.status) announce(`${item.name}: ${item.status}`);
    if (previous !== item.status) fill(body, item.status === "ready" && classBars(item), item.status === "ready" && warnings(item));
    if (item.status === "failed" && previous !== "failed") fill(body, problemBlock(item.error || { title: "The data set could not be read" }));
    if (item.status === "failed" && BUSY.includes(previous) && item.error?.columns) offerColumns(item.error.columns, item.error.sample_row);
    if (BUSY.includes(item.status)) fill(body, ingestProgress(item));
    details.hidden = item.status !== "ready";
    previous = item.status;
  }
  return { element, update };
}

function summary(item) {
  const parts = [];
  if (item.counts) parts.push(imageCounts(item.counts));
  if (item.classes?.length) parts.push(plural(item.classes.length, "class", "classes"));
  if (item.facts?.median_width) parts.push(`${item.facts.median_width} × ${item.facts.median_height} px`);
  if (typeof item.facts?.noise_rate === "number") parts.push(`known noise rate ${percent(item.facts.noise_rate)}`);
  if (item.size_bytes) parts.push(bytes(item.size_bytes));
  if (item.label_version > 1) parts.push(`labels version ${item.label_version}`);
  parts.push(ago(item.created_at));
  return parts.filter(Boolean).join(" · ");
}

function imageCounts(counts) {
  return ["train", "test"].filter((split) => counts[split]).map((split) => `${number(total(counts[split]))} ${split}`).join(" + ") + " images";
}

const total = (byClass) => Object.values(byClass).reduce((sum, count) => sum + count, 0);

function ingestProgress(item) {
  const share = item.progress?.fraction;
  return h("div", { class: "progress-line" },
    h("progress", { max: 1, ...(typeof share === "number" ? { value: share } : {}), "aria-label": `Reading ${item.name}` }),
    h("span", {}, item.progress?.phase ? words(item.progress.phase) : "Reading every image"));
}
