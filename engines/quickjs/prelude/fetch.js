// atlas.fetch, which is also the global fetch: a Request to the host, a Response from it.
// An aborted signal frees the function at once. The host is not told: its request goes on until it ends by itself or the
// invocation does, and counts among the 64 in flight. `timeout` ends it there, too.
(function (core) {
  const { raw } = core.need("headers");
  const { take, base64 } = core.need("body");
  const { Request } = core.need("request");
  const { fetched } = core.need("response");

  async function fetch(input, options = {}) {
    const request = new Request(input, options ?? {});
    const timeout = options?.timeout;
    if (timeout !== undefined && timeout !== null && !(typeof timeout === "number" && timeout > 0 && timeout < Infinity)) {
      throw new TypeError("timeout must be a positive number of milliseconds");
    }
    const { signal } = request;
    if (signal?.aborted) throw signal.reason;
    const answer = core.hostCall("fetch", [request.url, {
      __proto__: null, method: request.method, headers: raw(request.headers), body_base64: base64(take(request)),
      timeout_ms: timeout ?? null, redirect: request.redirect,
    }]);
    if (signal === null || signal === undefined) return fetched(await answer);
    return new core.NativePromise((resolve, reject) => {
      const abort = () => reject(signal.reason);
      signal.addEventListener("abort", abort, { once: true });
      const done = () => signal.removeEventListener("abort", abort);
      (async () => {
        try { resolve(fetched(await answer)); } catch (error) { reject(error); } finally { done(); }
      })();
    });
  }

  return { __proto__: null, fetch };
})
