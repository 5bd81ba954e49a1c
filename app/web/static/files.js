/** Files to keep: any answer of the service saved under a name, and what a finished job left. */

import { blob, getItems } from "./api.js";
import { h } from "./dom.js";
import { show } from "./problems.js";

/** A download that carries the key: fetched, then offered as a file. `accept` where the path has several forms. */
export async function save(path, filename, place, accept = "*/*") {
  try {
    const address = URL.createObjectURL(await blob(path, { Accept: accept }));
    h("a", { href: address, download: filename }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch (error) {
    show(place, error);
  }
}

/** {path, names(), buttons(choices, problem)} of a job's artifacts; the list is loaded once. */
export function jobFiles(job) {
  const path = `/jobs/${job.id}/artifacts`;
  let listing = null;

  /** A promise of the set of names. */
  function names() {
    listing ??= getItems(path).then(({ items }) => new Set(items.map((artifact) => artifact.name))).catch((error) => {
      listing = null;
      throw error;
    });
    return listing;
  }

  /** choices: [[file, text, addition for a screen reader]]. A button for every file that exists, null without any. */
  async function buttons(choices, problem) {
    const there = await names();
    const available = choices.filter(([name]) => there.has(name));
    return available.length > 0 && h("div", { class: "saves" }, available.map(([name, text, of]) =>
      h("button", { type: "button", class: "small", on: { click: () => save(`${path}/${name}`, own(name), problem) } }, text, of && h("span", { class: "unseen" }, ` ${of}`))));
  }

  const own = (name) => name.replace(/(?=\.[^.]*$)/, `-${job.id}`);
  return { path, names, buttons };
}
