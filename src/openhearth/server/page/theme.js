// Light, dark, or as the system says: set before anything is drawn, so this one is no module.
(() => {
  const NAME = "openhearth.theme";
  const root = document.documentElement;
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply(localStorage.getItem(NAME));
  addEventListener("DOMContentLoaded", () => {
    const picker = document.getElementById("theme");
    picker.value = root.dataset.theme ?? "auto";
    picker.addEventListener("change", () => {
      localStorage.setItem(NAME, picker.value);
      apply(picker.value);
    });
  });
})();
