// A name for screen readers must hold the words that are seen, what scrolls must be reached by keys, sources
// are no list to them, and a picture that a widget shows is called what its section is.
document.addEventListener("DOMContentLoaded", () => {
  for (const named of document.querySelectorAll("summary[aria-label], .search-button-field"))
    named.removeAttribute("aria-label");
  for (const sources of document.querySelectorAll(".citation-list")) sources.removeAttribute("role");
  const reach = () => {
    for (const box of document.querySelectorAll("article table, .cell_output, .cell_output .output, article pre"))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
  };
  const title = (image) => image.closest("section")?.querySelector("h1, h2, h3")?.innerText ?? "";
  const call = () => document.querySelectorAll("article img:not([alt])").forEach((i) => (i.alt = title(i)));
  new MutationObserver(call).observe(document.body, { childList: true, subtree: true });
  addEventListener("load", reach);
  addEventListener("resize", reach);
});
