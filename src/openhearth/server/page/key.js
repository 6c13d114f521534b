// The API key: for this tab, or kept in this browser when the visitor says so. It is sent to this server alone,
// and is in no export.

const NAME = "openhearth.key";

export function readKey() {
  return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
}

export function isKept() {
  return localStorage.getItem(NAME) !== null;
}

/** Take a key; an empty one forgets. */
export function writeKey(key, keep) {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
  if (key) (keep ? localStorage : sessionStorage).setItem(NAME, key);
}
