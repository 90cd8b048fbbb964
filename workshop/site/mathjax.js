// The widgets' html-manager asks MathJax 2 to set its formulas; MathJax 3 answers it.
{
  const Hub = { Queue: ([, , element]) => MathJax.typesetPromise?.([element]) };
  const ready = () => { MathJax.startup.defaultReady(); MathJax.Hub = Hub; };
  window.MathJax = { ...window.MathJax, Hub, startup: { ready } };
}
