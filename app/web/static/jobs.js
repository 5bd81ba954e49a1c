/** The list of jobs: one row a job, each a link to its view. */

import { get } from "./api.js";
import { catalog, methodTitle } from "./catalog.js";
import { h, write } from "./dom.js";
import { ago, percent, plural } from "./format.js";
import { ENDED } from "./job.js";
import { pagedList } from "./lists.js";

/** Fills the list; returns what ends it. */
export function jobs() {
  const names = new Map(); // of data sets, by id: a promise becomes a name
  let methods = null; // titles of methods
  catalog().then((loaded) => ((methods = loaded), list.redraw()), () => {}); // without it the names serve

  /** The name of a data set; undefined until it is known. */
  function nameOf(id) {
    if (id && !names.has(id)) {
      names.set(id, undefined);
      get(`/datasets/${id}`).then(({ name }) => (names.set(id, name), list.redraw()), () => {});
    }
    return names.get(id);
  }

  const list = pagedList({
    path: "/jobs",
    list: document.getElementById("job-list"),
    more: document.getElementById("jobs-more"),
    problem: document.getElementById("jobs-problem"),
    rows: (item) => jobRow(item, (job) => [jobTitle(job, methods, nameOf(job.dataset_id)), summary(job, methods, nameOf(job.dataset_id))]),
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

/** Its own name, or what it does; `methods` (the catalog) and the name of its data set may be unknown yet. */
export function jobTitle(job, methods, dataset) {
  return job.name || `${methodName(methods, job)} on ${dataset || "a data set"}`;
}

/** Its method in words. */
export function methodName(methods, item) {
  if (item.type === "predict") return "Scores";
  return methods ? methodTitle(methods, item.method, item.request.params) : item.method;
}

/** What it is, in one line: with its method and data set where its own name is its title. */
function summary(item, methods, dataset) {
  const accuracy = item.metrics?.test_accuracy;
  return [
    item.name && `${methodName(methods, item)}${dataset ? ` on ${dataset}` : ""}`,
    item.compared_with_id && "for comparison", item.network, item.epochs && plural(item.epochs, "epoch"),
    accuracy && `test accuracy ${percent(accuracy.last)}`,
    ago(item.created_at),
  ].filter(Boolean).join(" · ");
}
