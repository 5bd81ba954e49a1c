/** The list of jobs: one row a job, each a link to its view. */

import { h, write } from "./dom.js";
import { ago, percent, plural } from "./format.js";
import { ENDED } from "./job.js";
import { pagedList } from "./lists.js";
import { namesOf } from "./names.js";

/** Fills the list; returns what ends it. */
export function jobs() {
  let names = null;
  const list = pagedList({
    path: "/jobs",
    list: document.getElementById("job-list"),
    more: document.getElementById("jobs-more"),
    problem: document.getElementById("jobs-problem"),
    prepare: async (items) => (names = await namesOf(items)),
    rows: (item) => jobRow(item, (job) => [names.title(job), summary(job, names)]),
    empty: () => h("li", { class: "empty" }, "Nothing has been trained yet."),
    busy: (items) => items.some((item) => !ENDED.includes(item.status)),
    quickMs: 2000,
    slowMs: 15000,
  });
  list.refresh();
  return list.close;
}

function jobRow(first, texts) {
  const name = h("a", { href: `/ui/jobs/${first.id}` });
  const status = h("span", { class: "status" });
  const facts = h("p", { class: "quiet" });
  const bar = h("progress", { max: 1, "aria-hidden": "true" });
  const element = h("li", { class: "row job" }, h("div", { class: "row-head" }, h("h2", { class: "row-name" }, name), status), facts, bar);

  function update(item) {
    const [title, about] = texts(item);
    write(name, title);
    write(status, item.status);
    status.dataset.status = item.status;
    write(facts, about);
    bar.hidden = item.status !== "running" && item.status !== "cancelling";
    if (typeof item.progress?.fraction === "number") bar.value = item.progress.fraction;
    else bar.removeAttribute("value");
  }
  return { element, update };
}

/** What it is, in one line: with its method and data set where its own name is its title. */
function summary(item, names) {
  const accuracy = item.metrics?.test_accuracy;
  return [
    item.name && names.work(item),
    item.compared_with_id && "for comparison", item.network, item.epochs && plural(item.epochs, "epoch"),
    accuracy && `test accuracy ${percent(accuracy.last)}`,
    ago(item.created_at),
  ].filter(Boolean).join(" · ");
}
