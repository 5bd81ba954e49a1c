/** Pickers made of radio buttons and check boxes: the keyboard works as the browser's does. Knows no method. */

import { h, uniqueId, write } from "./dom.js";

/** options: [{value, title, text, note}]; `more`: {title, style, options}, further ones behind a fold. Returns {element, value(), offer(values)}. */
export function radios({ legend, options, style, more, changed }) {
  const name = uniqueId("choice");
  const items = []; // {value, input, element} of every option
  let preferred = options[0]?.value; // by the user
  let chosen = preferred;

  function option(item) {
    const id = uniqueId("option");
    const input = h("input", {
      type: "radio", name, id, value: item.value, checked: item.value === chosen,
      "aria-describedby": item.text && `${id}-text`,
      on: { change: () => ((preferred = chosen = item.value), showHidden(), changed(chosen)) },
    });
    const element = h("div", { class: "option" }, input, h("label", { for: id },
      h("span", { class: "option-title" }, item.title, item.note && h("span", { class: "tag" }, item.note)),
      item.text && h("span", { class: "option-text", id: `${id}-text` }, item.text)));
    items.push({ value: item.value, input, element });
    return element;
  }
  const summary = h("summary", {}, more?.title);
  /** Name the selected option on the fold when it is inside. */
  function showHidden() {
    const hidden = more?.options.find((item) => item.value === chosen);
    if (more) write(summary, hidden ? `${more.title}: ${hidden.title}` : more.title);
  }
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend),
    h("div", { class: style }, options.map(option)),
    more?.options.length > 0 && h("details", { class: "more" }, summary,
      h("div", { class: more.style }, more.options.map(option))));

  /** Show only the options with these values. What the user chose is chosen where it is among them, else the first. */
  function offer(values) {
    chosen = values.includes(preferred) ? preferred : values[0];
    for (const item of items) {
      item.element.hidden = !values.includes(item.value);
      item.input.checked = item.value === chosen;
    }
    showHidden();
  }
  return { element, value: () => chosen, offer };
}

/** Any number of options; returns {element, values()}. */
export function checks({ legend, help, options, changed }) {
  const boxes = options.map((item) => {
    const id = uniqueId("check");
    const input = h("input", { type: "checkbox", id, on: { change: changed } });
    return { input, value: item.value, element: h("div", { class: "check" }, input, h("label", { for: id }, item.title)) };
  });
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend),
    h("div", { class: "checks" }, boxes.map((box) => box.element)), help && h("p", { class: "field-help" }, help));
  return { element, values: () => boxes.filter((box) => box.input.checked).map((box) => box.value) };
}
