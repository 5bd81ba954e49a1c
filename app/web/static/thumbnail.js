/** A picture of a data set, by its number. Images cannot carry a key: with one the bytes are fetched. */

import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { hasKey, imageAddress } from "./api.js";

/** `small` is the picture as a network sees it, otherwise the original. */
export function DatasetPicture({ dataset, index, alt, small = true, onLoad }) {
  const path = `/datasets/${dataset}/images/${index}${small ? "/thumbnail" : ""}`;
  const [address, setAddress] = useState(hasKey() ? null : path);
  useEffect(() => {
    if (!hasKey()) return setAddress(path);
    let made = null;
    let current = true;
    imageAddress(path).then((blob) => {
      made = blob;
      if (current) setAddress(blob);
      else URL.revokeObjectURL(blob);
    }, () => {});
    return () => {
      current = false;
      if (made) URL.revokeObjectURL(made);
    };
  }, [path]);
  const image = useRef(null);
  useLayoutEffect(() => { // at once: it may leave before the next frame
    const element = image.current;
    return () => element.removeAttribute("src"); // ends the request: while one is under way, the browser keeps the element and all around it
  }, []);
  return html`<img ref=${image} src=${address ?? undefined} alt=${alt} decoding="async" onLoad=${onLoad} />`;
}
