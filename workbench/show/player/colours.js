/*
Two palettes, and which of them fits the page. Every text has a contrast of at least 4.5 against its ground.
*/

const LIGHT = {
  back: "#ffffff", panel: "#f6f7f9", ink: "#1d222b", soft: "#555d6b", line: "#d5d9e0", wave: "#2b62a8", f0: "#0b756f",
  cursor: "#c4321c", loop: "rgba(26, 95, 208, 0.16)", edge: "#1a5fd0", kinds: ["#b3261e", "#8a5a00", "#6b3fa0", "#00695c", "#9c2a6b", "#37517e"],
};
const DARK = {
  back: "#14161a", panel: "#1c1f25", ink: "#e7e9ed", soft: "#a9b0bd", line: "#363b46", wave: "#7fb0ea", f0: "#55cfc4",
  cursor: "#ff8a73", loop: "rgba(122, 176, 255, 0.22)", edge: "#7ab0ff", kinds: ["#ff8f85", "#f0b64e", "#c6a4f5", "#5fd3c0", "#f08cc0", "#9db8e8"],
};

/**
 * Return whether the page is dark behind the player: by the background of the nearest element that has one, else
 * by the user's preference.
 *
 * @param {Element} host
 * @returns {boolean}
 */
function isDark(host) {
  // A canvas of one pixel reads colours in any notation of CSS.
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  for (let node = host; node instanceof Element; node = node.parentElement ?? node.getRootNode().host) {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = getComputedStyle(node).backgroundColor;
    pixel.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
    const isOpaque = alpha > 127; // half of 255
    if (isOpaque) return 0.3 * red + 0.6 * green + 0.1 * blue < 128; // luma below half
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}
