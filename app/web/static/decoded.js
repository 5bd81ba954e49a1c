/** Pictures ready to be drawn. */

import { Problem } from "./api.js";

/** A promise of the picture at an address; an address of a blob is of no use after it. */
export async function decoded(address) {
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
  } catch {
    throw new Problem({ title: "The browser cannot show this picture", detail: "JPEG, PNG, WebP, GIF and BMP work everywhere." });
  } finally {
    if (address.startsWith("blob:")) URL.revokeObjectURL(address);
  }
  return image;
}
