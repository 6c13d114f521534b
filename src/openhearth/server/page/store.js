// Conversations in this browser's IndexedDB. Where a browser keeps nothing, they live as long as the page.

const NAME = "openhearth";
const TABLE = "conversations";

const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** A table of conversations by id. */
export class Store {
  /** Open the table. isKept says whether conversations outlive the page. */
  static async open() {
    const store = new Store();
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      store.database = await settled(request);
    } catch {
      store.memory = new Map();
    }
    return store;
  }

  get isKept() {
    return this.database !== undefined;
  }

  #table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  async get(id) {
    return this.memory ? this.memory.get(id) : settled(this.#table("readonly").get(id));
  }

  async all() {
    const found = this.memory ? [...this.memory.values()] : await settled(this.#table("readonly").getAll());
    return found.sort((one, other) => other.updated - one.updated);
  }

  async put(conversation) {
    if (this.memory) this.memory.set(conversation.id, conversation);
    else await settled(this.#table("readwrite").put(conversation));
  }

  async remove(id) {
    if (this.memory) this.memory.delete(id);
    else await settled(this.#table("readwrite").delete(id));
  }
}
