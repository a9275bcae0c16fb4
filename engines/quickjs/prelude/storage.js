// atlas.storage: objects of the project. A content travels as base64, and is decoded when it is read.
(function (core) {
  const { bytesOf, encodeUtf8, decodeUtf8 } = core.need("encoding");
  const isView = ArrayBuffer.isView;
  const MOST_BYTES = 5 * 1024 * 1024;
  const TEXT = "text/plain;charset=UTF-8";

  function text(value, what) {
    if (typeof value !== "string") throw new TypeError(what + " must be a string");
    return value;
  }

  function names(bucket, path) { return [text(bucket, "The bucket"), text(path, "The path")]; }

  function given(options) { return options === undefined || options === null ? { __proto__: null } : options; }

  function base64(body) {
    let bytes;
    if (typeof body === "string") bytes = encodeUtf8(core.toWellFormed(body));
    else if (typeof body === "object" && body !== null && (isView(body) || body instanceof ArrayBuffer)) bytes = bytesOf(body);
    else throw new TypeError("The body of atlas.storage.put must be a string, an ArrayBuffer or a view of one");
    if (bytes.length <= MOST_BYTES) return core.toBase64(bytes);
    const said = "atlas.storage.put: the body has " + bytes.length + " bytes, " + MOST_BYTES + " are allowed in one call";
    throw core.hostError("storage_body_limit", said, new Error());
  }

  function describe(object, told) {
    object.bucket = told.bucket;
    object.path = told.path;
    object.size = told.size;
    object.contentType = told.content_type;
    object.checksum = told.checksum;
    object.etag = told.etag;
    object.metadata = told.metadata;
    object.createdAt = told.created_at;
    object.updatedAt = told.updated_at;
    return object;
  }

  class StoredContent {
    #base64;

    constructor(told) {
      this.#base64 = told.body_base64;
      describe(this, told);
    }

    async bytes() { return new Uint8Array(core.fromBase64(this.#base64)); }
    async arrayBuffer() { return (await this.bytes()).buffer; }
    async text() {
      const data = await this.bytes();
      const marked = data[0] === 0xef && data[1] === 0xbb && data[2] === 0xbf;
      return decodeUtf8(marked ? data.subarray(3) : data, false);
    }
    async json() { return JSON.parse(await this.text()); }
  }

  const storage = core.freeze({
    __proto__: null,
    async put(bucket, path, body, options) {
      const { contentType, metadata, overwrite } = given(options);
      const type = contentType ?? (typeof body === "string" ? TEXT : null);
      const told = await core.hostCall("storage.put", [...names(bucket, path), base64(body), {
        __proto__: null, content_type: type, metadata: metadata ?? null, overwrite: overwrite ?? null,
      }]);
      return describe({}, told);
    },
    async get(bucket, path, options) {
      const { offset, length } = given(options);
      const told = await core.hostCall("storage.get", [...names(bucket, path), { __proto__: null, offset: offset ?? null, length: length ?? null }]);
      return told === null ? null : new StoredContent(told);
    },
    async list(bucket, options) {
      const { prefix, limit, cursor } = given(options);
      const told = await core.hostCall("storage.list", [text(bucket, "The bucket"), {
        __proto__: null, prefix: prefix ?? null, limit: limit ?? null, cursor: cursor ?? null,
      }]);
      const objects = [];
      for (let i = 0; i < told.objects.length; i++) objects.push(describe({}, told.objects[i]));
      return { objects, cursor: told.cursor };
    },
    async delete(bucket, path) { return await core.hostCall("storage.delete", names(bucket, path)); },
  });

  return { __proto__: null, storage };
})
