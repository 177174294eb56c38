// @ts-check
/** Photos that are too large for the server, made smaller here; a model looks at far fewer pixels anyway. */

const LONGEST_SIDE = 2048;
const QUALITY = 0.9;

/**
 * A JPEG of the photo, upright, on white where it is transparent.
 *
 * @param {Blob} photo
 * @returns {Promise<Blob | null>} null if this browser cannot read the photo
 */
export async function shrink(photo) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(photo);
  } catch {
    return null;
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}
