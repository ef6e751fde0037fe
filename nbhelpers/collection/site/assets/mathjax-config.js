// Formulas as SVG. The widgets' script speaks to MathJax 2, so its one call is answered here. What myst-nb says about
// which parts of a page hold formulas stands before this and is kept.
window.MathJax = Object.assign(window.MathJax || {}, {
  svg: { fontCache: "global" },
  startup: {
    ready() {
      MathJax.startup.defaultReady();
      MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
    },
  },
});
