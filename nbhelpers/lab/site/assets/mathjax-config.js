// Formulas as SVG. The widgets' script speaks to MathJax 2, so its one call is answered here.
window.MathJax = {
  svg: { fontCache: "global" },
  startup: {
    ready() {
      MathJax.startup.defaultReady();
      MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
    },
  },
};
