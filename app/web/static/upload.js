/**
 * The upload form: one archive or folder, its name and columns, a progress bar, a way to stop. Knows nothing of the list.
 * {offerColumns(columns, sampleRow)} offers the columns of a table that a worker has refused.
 */

import { Problem, upload } from "./api.js";
import { announce, fill, h, write } from "./dom.js";
import { bytes, duration, percent } from "./format.js";
import { show } from "./problems.js";
import { tarOf } from "./tar.js";

const COLUMNS = ["path", "label", "clean"];

export function uploadForm(uploaded) {
  const part = (name) => document.getElementById(`upload-${name}`);
  const [form, file, folder, name, problem] = ["form", "file", "folder", "name", "problem"].map(part);
  let running = null;
  let archive = null;

  file.addEventListener("change", () => choose(file.files[0]));
  part("folder-button").addEventListener("click", () => folder.click());
  folder.addEventListener("change", () => folder.files.length && choose(tarOf(folder.files)));
  dropZone(part("drop"), (files) => choose(files[0]));

  function choose(chosen) {
    archive = chosen ?? null;
    write(part("chosen"), archive ? archive.name : "Choose an archive");
    part("drop").classList.toggle("has-file", Boolean(archive));
    if (archive && !name.value) name.placeholder = archive.name.replace(/\.(zip|tar|tgz|tar\.\w+|gz|zst)$/i, "");
    show(problem, null);
  }

  part("cancel").addEventListener("click", () => running?.abort());

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!archive) return show(problem, new Problem({ title: "Choose an archive first" }));
    if (running) return undefined;
    running = new AbortController();
    busy(true);
    show(problem, null);
    try {
      await upload("/datasets", body(), progressText(archive.size), running.signal);
      announce(`${archive.name} uploaded; its images are being read`);
      form.reset();
      offerColumns([], {});
      choose(null);
      name.placeholder = "";
      await uploaded();
    } catch (error) {
      if (error.columns?.length) offerColumns(error.columns, error.sampleRow);
      show(problem, error);
    } finally {
      running = null;
      busy(false);
    }
    return undefined;
  });

  /** Fields first, so that the service knows them before the archive streams in. */
  function body() {
    const data = new FormData();
    data.append("name", name.value.trim() || name.placeholder || archive.name);
    for (const column of COLUMNS) {
      const input = part(`${column}-column`);
      if (input.value.trim()) data.append(`${column}_column`, input.value.trim());
    }
    data.append("file", archive);
    return data;
  }

  /** Offer the columns of a refused table in the fields for columns, and show its first row beside them. */
  function offerColumns(columns, sampleRow) {
    fill(part("columns"), columns.map((column) => h("option", { value: column })));
    const values = Object.entries(sampleRow).map(([column, value]) => `${column}: ${value}`);
    write(part("sample"), `First row of the table: ${values.join(" · ")}`);
    part("sample").hidden = values.length === 0;
    if (columns.length) part("table").open = true;
  }

  function busy(is) {
    part("button").disabled = is;
    part("cancel").hidden = !is;
    part("progress").hidden = !is;
  }

  function progressText(size) {
    const started = performance.now();
    return (sent, total) => {
      const share = total ? sent / total : 0;
      const left = ((performance.now() - started) / 1000) * (1 / Math.max(share, 1e-6) - 1);
      part("bar").value = share;
      const text = share < 1 ? `${percent(share, 0)} of ${bytes(size)} · ${duration(left)} left` : "Checking the archive";
      write(part("text"), text);
    };
  }

  return { offerColumns };
}

/** Files dropped on an element; the page itself never navigates to a dropped file. */
export function dropZone(element, dropped) {
  for (const type of ["dragenter", "dragover"]) {
    element.addEventListener(type, (event) => {
      event.preventDefault();
      element.classList.add("over");
    });
  }
  for (const type of ["dragleave", "drop"]) element.addEventListener(type, () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) dropped(event.dataTransfer.files);
  });
}
