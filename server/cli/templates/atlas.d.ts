// What a function can reach: `atlas`, its context, and the Web APIs that every runtime has.
// Made by `atlas init`; there is no `dom` library here, and no Node.js one.

declare namespace atlas {
  type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

  /** The default export of a function. */
  type Handler<Input = any, Output = unknown> = (input: Input, ctx: Context) => Output | Promise<Output>;

  /** The second argument of the handler; deeply frozen. */
  interface Context {
    readonly request: {
      /** `POST` when the function was not called over HTTP. */
      readonly method: string;
      /** What follows the slug: empty, or beginning with `/`. */
      readonly path: string;
      /** Of a name that is repeated, the last value. */
      readonly query: { readonly [name: string]: string };
      /** Names in lower case; the header with the API key is left out. */
      readonly headers: { readonly [name: string]: string };
    };
    /** UUID of the run. */
    readonly invocation_id: string;
    /** UUID of the project. */
    readonly project_id: string;
    /** Environment variables and secrets of the version. */
    readonly env: { readonly [name: string]: string };
  }

  /** Every call of the host rejects with this. */
  interface HostError extends Error {
    name: "AtlasError";
    /** Stable, e.g. `fetch_blocked`; of SQL, `sql_` and the SQLSTATE, e.g. `sql_23505`. */
    code: string;
  }

  /** A value of `$1`: bytes become `bytea`, dates ISO 8601, objects `jsonb`. */
  type Parameter =
    | string | number | bigint | boolean | null | undefined | Date | ArrayBuffer | ArrayBufferView
    | readonly Parameter[] | { readonly [name: string]: unknown };

  const db: {
    /** One statement in the project's own schema, committed when all its rows were read. */
    query<Row = { [column: string]: any }>(sql: string, params?: readonly Parameter[] | null): Promise<Row[]>;

    /**
     * Several statements in one transaction: committed when the callback is done, rolled back when it throws, when a
     * statement fails, when the run ends, and after 10 seconds. One at a time in a run; `atlas.db.query` goes on beside it.
     *
     * With `exactlyOnce` it is done once for all deliveries of an event to a trigger (or all attempts at the run, when no
     * event started it): where it was committed before, the callback is not called, and what it answered then, as JSON
     * of at most 64 KiB, is the answer again. A function with several of them gives each a name in place of `true`.
     *
     * In a function deployed with `exactly_once` the whole run is one transaction already: this is a part of it that is
     * committed with it, and whose failure, caught or not, rolls all of it back.
     */
    transaction<Value>(
      callback: (tx: Transaction) => Value | Promise<Value>,
      options?: { exactlyOnce?: boolean | string | null } | null,
    ): Promise<Value>;
  };

  interface Transaction {
    /** One statement of the transaction. */
    query<Row = { [column: string]: any }>(sql: string, params?: readonly Parameter[] | null): Promise<Row[]>;
    /** An event that is published when the transaction is committed, and only then. */
    publish(type: string, data: unknown, options?: EventOptions | null): Promise<Published>;
  }

  interface EventOptions {
    /** Unique in the project: an event of an id that is there already is not published again. A UUID without it. */
    id?: string | null;
    subject?: string | null;
  }

  interface Published {
    id: string;
    /** Whether an event of this id was there already. */
    duplicate: boolean;
  }

  const events: {
    /**
     * A custom event of the project, stored when the promise resolves; at most 100 of a run. `transactional`: it belongs
     * to the transaction that is open, as with `tx.publish`.
     */
    publish(
      type: string, data: unknown, options?: (EventOptions & { transactional?: boolean }) | null,
    ): Promise<Published>;
  };

  const kv: {
    /** The value, or null when there is none or it has expired. */
    get<Value = any>(key: string): Promise<Value | null>;
    /** Keeps a JSON value; `ttl` in seconds, for ever without it. */
    set(key: string, value: unknown, options?: { ttl?: number | null } | null): Promise<void>;
    /** Whether there was one. */
    delete(key: string): Promise<boolean>;
  };

  /** A stored object without its content. */
  interface StoredObject {
    readonly bucket: string;
    readonly path: string;
    /** Bytes. */
    readonly size: number;
    readonly contentType: string;
    /** SHA-256 in hexadecimal. */
    readonly checksum: string;
    readonly etag: string;
    readonly metadata: { readonly [name: string]: Json };
    /** ISO 8601. */
    readonly createdAt: string;
    readonly updatedAt: string;
  }

  /** A stored object with its content, which may be read more than once. */
  interface StoredContent extends StoredObject {
    text(): Promise<string>;
    json(): Promise<any>;
    bytes(): Promise<Uint8Array>;
    arrayBuffer(): Promise<ArrayBuffer>;
  }

  const storage: {
    /** Stores at most 5 MiB, in a private bucket that is made if there is none; replaces what was there unless `overwrite` is false. */
    put(
      bucket: string,
      path: string,
      body: string | ArrayBuffer | ArrayBufferView,
      options?: { contentType?: string | null; metadata?: { [name: string]: Json } | null; overwrite?: boolean | null } | null,
    ): Promise<StoredObject>;
    /** The object, or null when there is none; with `offset` and `length` in bytes, a part of its content. */
    get(bucket: string, path: string, options?: { offset?: number | null; length?: number | null } | null): Promise<StoredContent | null>;
    /** By path; `limit` 1 to 200, 50 without it. `cursor` of the answer goes on behind it, null at the end. */
    list(
      bucket: string,
      options?: { prefix?: string | null; limit?: number | null; cursor?: string | null } | null,
    ): Promise<{ objects: StoredObject[]; cursor: string | null }>;
    /** Whether there was one. */
    delete(bucket: string, path: string): Promise<boolean>;
  };

  interface FetchOptions extends RequestInit {
    /** Milliseconds for the whole exchange, redirects included; 10,000 without it. */
    timeout?: number | null;
  }

  /** HTTP to public addresses; the same as the global `fetch`. */
  function fetch(input: string | URL | Request, options?: FetchOptions | null): Promise<Response>;
}

declare function fetch(input: string | URL | Request, options?: atlas.FetchOptions | null): Promise<Response>;
declare const self: typeof globalThis;

// Fetch

type BufferSource = ArrayBuffer | ArrayBufferView;
type BodyInit = string | BufferSource | URLSearchParams;
type HeadersInit = Headers | Iterable<readonly [string, string]> | { readonly [name: string]: string };

interface RequestInit {
  method?: string;
  headers?: HeadersInit;
  body?: BodyInit | null;
  redirect?: "follow" | "manual" | "error";
  signal?: AbortSignal | null;
}

interface ResponseInit {
  /** 200 to 599. */
  status?: number;
  statusText?: string;
  headers?: HeadersInit;
}

declare class Headers {
  constructor(init?: HeadersInit | null);
  append(name: string, value: string): void;
  delete(name: string): void;
  get(name: string): string | null;
  has(name: string): boolean;
  set(name: string, value: string): void;
  getSetCookie(): string[];
  forEach(callback: (value: string, name: string, headers: Headers) => void, self?: unknown): void;
  entries(): IterableIterator<[string, string]>;
  keys(): IterableIterator<string>;
  values(): IterableIterator<string>;
  [Symbol.iterator](): IterableIterator<[string, string]>;
}

/** A body is read whole, and once. */
interface Body {
  readonly bodyUsed: boolean;
  text(): Promise<string>;
  json(): Promise<any>;
  bytes(): Promise<Uint8Array>;
  arrayBuffer(): Promise<ArrayBuffer>;
}

interface Request extends Body {}
declare class Request {
  constructor(input: string | URL | Request, init?: RequestInit);
  readonly url: string;
  readonly method: string;
  readonly headers: Headers;
  readonly signal: AbortSignal | null;
  readonly redirect: "follow" | "manual" | "error";
  clone(): Request;
}

interface Response extends Body {}
/** Returned by the handler, it becomes the HTTP answer itself. */
declare class Response {
  constructor(body?: BodyInit | null, init?: ResponseInit);
  readonly status: number;
  readonly statusText: string;
  readonly ok: boolean;
  readonly headers: Headers;
  readonly type: string;
  readonly url: string;
  readonly redirected: boolean;
  clone(): Response;
  static error(): Response;
  static json(data: unknown, init?: ResponseInit): Response;
  static redirect(url: string | URL, status?: 301 | 302 | 303 | 307 | 308): Response;
}

// URL

declare class URL {
  constructor(input: string | URL, base?: string | URL);
  static canParse(input: string | URL, base?: string | URL): boolean;
  static parse(input: string | URL, base?: string | URL): URL | null;
  href: string;
  readonly origin: string;
  protocol: string;
  username: string;
  password: string;
  host: string;
  hostname: string;
  port: string;
  pathname: string;
  search: string;
  readonly searchParams: URLSearchParams;
  hash: string;
  toString(): string;
  toJSON(): string;
}

declare class URLSearchParams {
  constructor(init?: string | URLSearchParams | Iterable<readonly [string, string]> | { readonly [name: string]: string });
  readonly size: number;
  append(name: string, value: string): void;
  delete(name: string, value?: string): void;
  get(name: string): string | null;
  getAll(name: string): string[];
  has(name: string, value?: string): boolean;
  set(name: string, value: string): void;
  sort(): void;
  forEach(callback: (value: string, name: string, params: URLSearchParams) => void, self?: unknown): void;
  entries(): IterableIterator<[string, string]>;
  keys(): IterableIterator<string>;
  values(): IterableIterator<string>;
  [Symbol.iterator](): IterableIterator<[string, string]>;
  toString(): string;
}

// Text and bytes

declare class TextEncoder {
  readonly encoding: "utf-8";
  encode(text?: string): Uint8Array;
  encodeInto(text: string, target: Uint8Array): { read: number; written: number };
}

declare class TextDecoder {
  /** UTF-8, UTF-16 and Latin 1 by their usual names. */
  constructor(label?: string, options?: { fatal?: boolean; ignoreBOM?: boolean });
  readonly encoding: string;
  readonly fatal: boolean;
  readonly ignoreBOM: boolean;
  decode(source?: BufferSource, options?: { stream?: boolean }): string;
}

declare function atob(data: string): string;
declare function btoa(data: string): string;

interface SubtleCrypto {
  digest(algorithm: DigestAlgorithm | { name: DigestAlgorithm }, data: BufferSource): Promise<ArrayBuffer>;
}
type DigestAlgorithm = "SHA-1" | "SHA-256" | "SHA-384" | "SHA-512";

declare const crypto: {
  readonly subtle: SubtleCrypto;
  /** At most 65,536 bytes a call. */
  getRandomValues<View extends ArrayBufferView>(view: View): View;
  randomUUID(): string;
};

declare function structuredClone<Value>(value: Value, options?: { transfer?: readonly ArrayBuffer[] }): Value;

// Time

/** What `setTimeout` gives; opaque. */
type TimerId = number | { readonly [Symbol.toPrimitive]: () => number };
declare function setTimeout<Args extends unknown[]>(callback: (...args: Args) => unknown, ms?: number, ...args: Args): TimerId;
declare function setInterval<Args extends unknown[]>(callback: (...args: Args) => unknown, ms?: number, ...args: Args): TimerId;
declare function clearTimeout(id: TimerId | undefined): void;
declare function clearInterval(id: TimerId | undefined): void;
declare function queueMicrotask(callback: () => void): void;

declare const performance: {
  now(): number;
  readonly timeOrigin: number;
  toJSON(): unknown;
};

// Events

type EventListener<E extends Event = Event> = ((event: E) => unknown) | { handleEvent(event: E): unknown };

declare class Event {
  constructor(type: string, options?: { bubbles?: boolean; cancelable?: boolean });
  readonly type: string;
  readonly target: EventTarget | null;
  readonly currentTarget: EventTarget | null;
  readonly bubbles: boolean;
  readonly cancelable: boolean;
  readonly defaultPrevented: boolean;
  readonly timeStamp: number;
  preventDefault(): void;
  stopPropagation(): void;
  stopImmediatePropagation(): void;
}

declare class CustomEvent<Detail = any> extends Event {
  constructor(type: string, options?: { bubbles?: boolean; cancelable?: boolean; detail?: Detail });
  readonly detail: Detail;
}

declare class EventTarget {
  addEventListener(type: string, callback: EventListener<any> | null, options?: { once?: boolean; signal?: AbortSignal }): void;
  removeEventListener(type: string, callback: EventListener<any> | null): void;
  dispatchEvent(event: Event): boolean;
}

declare class AbortSignal extends EventTarget {
  private constructor();
  readonly aborted: boolean;
  readonly reason: any;
  onabort: ((event: Event) => unknown) | null;
  throwIfAborted(): void;
  static abort(reason?: unknown): AbortSignal;
  static timeout(ms: number): AbortSignal;
  static any(signals: Iterable<AbortSignal>): AbortSignal;
}

declare class AbortController {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
}

declare class DOMException extends Error {
  constructor(message?: string, name?: string);
  readonly code: number;
}

// Console: kept with the run, up to 64 KiB

declare const console: {
  log(...args: unknown[]): void;
  info(...args: unknown[]): void;
  warn(...args: unknown[]): void;
  error(...args: unknown[]): void;
  debug(...args: unknown[]): void;
  trace(...args: unknown[]): void;
  assert(condition?: unknown, ...args: unknown[]): void;
  dir(value?: unknown): void;
  dirxml(value?: unknown): void;
  table(data?: unknown): void;
  group(...args: unknown[]): void;
  groupCollapsed(...args: unknown[]): void;
  groupEnd(): void;
  count(label?: string): void;
  countReset(label?: string): void;
  time(label?: string): void;
  timeLog(label?: string, ...args: unknown[]): void;
  timeEnd(label?: string): void;
};
