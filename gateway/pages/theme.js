"use strict";
// Sets the theme before anything is drawn; loaded first, so that a dark page does not flash white.
(() => {
  let stored = null;
  try { stored = localStorage.getItem("theme"); } catch { /* a private window: the system's theme holds */ }
  if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const root = document.documentElement;
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it holds until reload */ }
    });
  });
})();
