// The theme before anything is painted: what was chosen, else what the system asks for.
(function () {
  var chosen = null;
  try { chosen = localStorage.getItem("onetape.theme"); } catch (refused) { /* a browser without storage asks the system */ }
  var dark = chosen ? chosen === "dark" : !matchMedia("(prefers-color-scheme: light)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
