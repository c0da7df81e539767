// Before the first paint: the theme that was chosen here. A theme is no secret, and so may stand in localStorage.
{
  const chosen = localStorage.getItem("runstream-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
