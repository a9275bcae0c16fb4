// atlas.fetch, which is also the global fetch: the engine's own Request to the host, its own Response from it.
(function (core) {
  const NativeRequest = Request;
  const NativeResponse = Response;
  const cloneOf = core.uncurry(Response.prototype.clone);
  const NULL_BODY = { __proto__: null, 204: true, 205: true, 304: true };

  function own(object, name, value) {
    core.defineProperty(object, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });
  }

  // What the constructor of Response does not take.
  function dressed(response, answer) {
    own(response, "url", answer.url);
    own(response, "redirected", answer.redirected);
    own(response, "type", "basic");
    own(response, "clone", function clone() { return dressed(cloneOf(this), answer); });
    return response;
  }

  function fetched(answer) {
    const empty = answer.body_base64 === null || NULL_BODY[answer.status] === true;
    const body = empty ? null : core.fromBase64(answer.body_base64);
    return dressed(new NativeResponse(body, { __proto__: null, status: answer.status, statusText: answer.status_text, headers: answer.headers }), answer);
  }

  async function bodyOf(request) {
    return request.body === null ? null : core.toBase64(new Uint8Array(await request.arrayBuffer()));
  }

  async function fetch(input, options = {}) {
    const init = typeof options === "object" && options !== null ? Object.create(options, { duplex: { value: options.duplex ?? "half" } }) : {};
    const request = new NativeRequest(input, init);
    const timeout = options?.timeout;
    if (timeout !== undefined && timeout !== null && !(typeof timeout === "number" && timeout > 0 && timeout < Infinity)) {
      throw new TypeError("timeout must be a positive number of milliseconds");
    }
    const signal = options?.signal ?? (input instanceof NativeRequest ? input.signal : null);
    if (signal?.aborted) throw signal.reason;
    const body = request.body === null ? null : await bodyOf(request);
    const answer = core.hostCall("fetch", [request.url, {
      __proto__: null, method: request.method, headers: [...request.headers], body_base64: body,
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
