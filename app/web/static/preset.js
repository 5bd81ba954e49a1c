/** Which settings a job starts from: those that the service chooses, or those of a preset. */

import { suited } from "./catalog.js";
import { h, uniqueId, write } from "./dom.js";
import { plain, short, words } from "./format.js";

/** What a fact of a data set measures. */
const MEASURED = { clutter: "by how much varies outside one small spot (0: nothing, 1: as much as in the whole picture)" };
/** What a preset that is chosen by a fact is for. */
const PURPOSE = { confounded: ({ title }) => `backgrounds are uniform, and ${title} learns from the object instead of the scene` };

/** {element, update(facts), settings(own)}; null where a method has nothing to choose from. */
export function presetPicker(method, changed) {
  const named = method.presets.filter((entry) => method.rules.length || Object.keys(entry.values).length);
  const id = uniqueId("preset");
  const automatic = h("option", { value: "" });
  const help = h("p", { class: "field-help", id: `${id}-help` });
  const input = h("select", { id, "aria-describedby": help.id, on: { change: () => (describe(), changed()) } },
    automatic, named.map((entry) => h("option", { value: entry.name }, entry.title)));
  const element = named.length > 0 && h("div", { class: "field wide" }, h("label", { for: id }, "Preset"), input, help);
  const chosen = () => named.find((entry) => entry.name === input.value);
  let facts = null;

  function update(datasetFacts) {
    facts = datasetFacts;
    describe();
  }

  function describe() {
    const ours = suited(method, facts);
    const name = ours ? ours.title : "Default";
    write(automatic, method.rules.length ? `${name} (chosen from the pictures)` : name);
    write(help, chosen() ? `Sets ${plain(chosen().values)}.` : reason(method, facts));
  }

  /** The params of a request, the user's own included; undefined: none, the service decides. */
  function settings(own) {
    if (!own && !chosen()) return undefined;
    return { ...(chosen() || suited(method, facts))?.values, ...own };
  }
  update(null);
  return { element, update, settings };
}

/** Why the settings are what they are when no preset is selected. */
function reason(method, facts) {
  return method.rules.map(({ preset, fact, below }) => {
    const value = facts?.[fact];
    const here = typeof value === "number" ? ` Here it is ${short(value)}, so ${suited(method, facts)?.title ?? "Default"} is used.` : "";
    const purpose = PURPOSE[preset]?.(method) ?? "other settings are better";
    return `Settings left empty are chosen from the pictures, ${MEASURED[fact] ?? `by their ${fact}`}. Below ${below} ${purpose} (${words(preset)}).${here}`;
  }).join(" ");
}
