/** Pickers made of radio buttons and check boxes: the keyboard works as the browser's does. Knows no method. */

import { fill, h, uniqueId } from "./dom.js";

/** options: [{value, title, text, note}]. Returns {element, value(), select(value)}. */
export function radios({ legend, options, style, changed }) {
  const name = uniqueId("choice");
  const body = h("div", { class: style });
  let chosen = options[0]?.value;
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend), body);

  function draw() {
    fill(body, options.map((each) => {
      const id = uniqueId("option");
      const input = h("input", {
        type: "radio", name, id, value: each.value, checked: each.value === chosen,
        "aria-describedby": each.text && `${id}-text`,
        on: { change: () => ((chosen = each.value), changed(chosen)) },
      });
      return h("div", { class: "option" }, input, h("label", { for: id },
        h("span", { class: "option-title" }, each.title, each.note && h("span", { class: "tag" }, each.note)),
        each.text && h("span", { class: "option-text", id: `${id}-text` }, each.text)));
    }));
  }
  draw();
  return { element, value: () => chosen };
}

/** Any number of options; returns {element, values()}. */
export function checks({ legend, help, options, changed }) {
  const boxes = options.map((each) => {
    const id = uniqueId("check");
    const input = h("input", { type: "checkbox", id, on: { change: changed } });
    return { input, value: each.value, element: h("div", { class: "check" }, input, h("label", { for: id }, each.title)) };
  });
  const element = h("fieldset", { class: "picker" }, h("legend", {}, legend),
    h("div", { class: "checks" }, boxes.map((box) => box.element)), help && h("p", { class: "field-help" }, help));
  return { element, values: () => boxes.filter((box) => box.input.checked).map((box) => box.value) };
}
