/** The section of jobs: the list, one row a job, each opening its panel in place. Knows nothing of training forms. */

import { catalog, methodTitle } from "./catalog.js";
import { h, write } from "./dom.js";
import { ago, percent, plural } from "./format.js";
import { ENDED, jobPanel } from "./job.js";
import { pagedList } from "./lists.js";

export function jobs(bus) {
  const names = new Map(); // of data sets
  bus.addEventListener("datasets", ({ detail }) => detail.forEach((dataset) => names.set(dataset.id, dataset.name)));
  let succeeded = null;
  let methods = null; // titles of methods
  catalog().then((loaded) => ((methods = loaded), list.redraw()), () => {}); // without it the names serve
  const title = (item) => item.name || `${methodName(methods, item)} on ${names.get(item.dataset_id) || "a data set"}`;

  const list = pagedList({
    path: "/jobs",
    list: document.getElementById("job-list"),
    more: document.getElementById("jobs-more"),
    problem: document.getElementById("jobs-problem"),
    rows: (item) => jobRow(item, title, () => list.refresh()),
    empty: () => h("li", { class: "empty" }, "Nothing has been trained yet."),
    busy: (items) => items.some((item) => !ENDED.includes(item.status)),
    quickMs: 2000,
    slowMs: 15000,
    loaded(items) {
      const now = items.filter((item) => item.status === "succeeded").map((item) => item.id).join();
      if (succeeded !== null && now !== succeeded) bus.dispatchEvent(new Event("models-changed"));
      succeeded = now;
    },
  });

  bus.addEventListener("job-started", async ({ detail }) => {
    await list.refresh();
    list.row(detail.id)?.open();
    list.row(detail.id)?.element.scrollIntoView({ block: "start", behavior: "smooth" });
  });
  return list;
}

function jobRow(first, title, refresh) {
  const name = h("span", { class: "row-name" });
  const status = h("span", { class: "status" });
  const facts = h("span", { class: "quiet" });
  const bar = h("progress", { max: 1, "aria-hidden": "true" });
  const place = h("div", { class: "row-panel", id: `job-${first.id}`, hidden: true });
  const button = h("button", { type: "button", class: "row-button", "aria-expanded": "false", "aria-controls": place.id, on: { click: toggle } },
    h("span", { class: "row-head" }, name, status), facts, bar);
  const element = h("li", { class: "row job" }, button, place);
  let panel = null;
  let latest = first;

  function toggle() {
    if (place.hidden) open();
    else close();
  }

  function open() {
    if (!place.hidden) return;
    place.hidden = false;
    button.setAttribute("aria-expanded", "true");
    panel = jobPanel(latest, refresh);
    place.replaceChildren(panel.element);
  }

  function close() {
    place.hidden = true;
    button.setAttribute("aria-expanded", "false");
    panel?.close();
    panel = null;
    place.replaceChildren();
  }

  function update(item) {
    latest = item;
    write(name, title(item));
    write(status, item.status);
    status.dataset.status = item.status;
    write(facts, summary(item));
    bar.hidden = item.status !== "running" && item.status !== "cancelling";
    if (typeof item.progress?.fraction === "number") bar.value = item.progress.fraction;
    else bar.removeAttribute("value");
    panel?.update(item);
  }
  return { element, update, open, remove: close };
}

function methodName(methods, item) {
  if (item.type === "predict") return "Scores";
  return methods ? methodTitle(methods, item.method, item.request.params) : item.method;
}

function summary(item) {
  const accuracy = item.metrics?.test_accuracy;
  return [
    item.compared_with_id && "for comparison", item.network, item.epochs && plural(item.epochs, "epoch"),
    accuracy && `test accuracy ${percent(accuracy.last)}`,
    ago(item.created_at),
  ].filter(Boolean).join(" · ");
}
