/** Which settings a job starts from: those that the service chooses, or those of a preset. */

import { suited } from "./catalog.js";
import { h, uniqueId, write } from "./dom.js";
import { plain, short, words } from "./format.js";

/** What a data set's fact measures. */
const MEASURED = { clutter: "by how busy they are outside one small spot (0: plain, 1: as busy as the whole picture)" };
/** What a preset is for that is chosen by a fact. */
const MEANT = { confounded: ({ title }) => `objects stand before plain, tidy backgrounds, and ${title} is told to trust the object and not the scene` };

/** {element, update(facts), settings(own)}; null where a method has nothing to choose from. */
export function presetPicker(method, changed) {
  const named = method.presets.filter((each) => method.rules.length || Object.keys(each.values).length);
  const id = uniqueId("preset");
  const automatic = h("option", { value: "" });
  const help = h("p", { class: "field-help", id: `${id}-help` });
  const input = h("select", { id, "aria-describedby": help.id, on: { change: () => (say(), changed()) } },
    automatic, named.map((each) => h("option", { value: each.name }, each.title)));
  const element = named.length > 0 && h("div", { class: "field wide" }, h("label", { for: id }, "Preset"), input, help);
  const chosen = () => named.find((each) => each.name === input.value);
  let facts = null;

  function update(found) {
    facts = found;
    say();
  }

  function say() {
    const ours = suited(method, facts);
    const name = ours ? ours.title : "Default";
    write(automatic, method.rules.length ? `${name} (chosen from the pictures)` : name);
    write(help, chosen() ? `Sets ${plain(chosen().values)}.` : reason(method, facts));
  }

  /** What a request says of settings beside the user's own; undefined: nothing, the service decides. */
  function settings(own) {
    if (!own && !chosen()) return undefined;
    return { ...(chosen() || suited(method, facts))?.values, ...own };
  }
  update(null);
  return { element, update, settings };
}

/** Why the settings are what they are, where nothing is chosen. */
function reason(method, facts) {
  return method.rules.map(({ preset, fact, below }) => {
    const found = facts?.[fact];
    const here = typeof found === "number" ? ` Here it is ${short(found)}, so ${suited(method, facts)?.title ?? "Default"} is taken.` : "";
    const meant = MEANT[preset]?.(method) ?? "other settings are better";
    return `Settings left alone are chosen from the pictures, ${MEASURED[fact] ?? `by their ${fact}`}. Below ${below} ${meant} (${words(preset)}).${here}`;
  }).join(" ");
}
