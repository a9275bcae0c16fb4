-- Request ids for all. REST answers: the status a function chose, and the error envelope; those of native gRPC and
-- gRPC-web pass untouched.

local names = {
  ["1"] = "cancelled", ["2"] = "unknown", ["3"] = "invalid_argument", ["4"] = "deadline_exceeded",
  ["5"] = "not_found", ["6"] = "already_exists", ["7"] = "permission_denied", ["8"] = "resource_exhausted",
  ["9"] = "failed_precondition", ["10"] = "aborted", ["11"] = "out_of_range", ["12"] = "unimplemented",
  ["13"] = "internal", ["14"] = "unavailable", ["15"] = "data_loss", ["16"] = "unauthenticated",
}

-- What the transcoder says of a body that it cannot read, without the piece of the body that it quotes: a secret may be
-- in it. All three are pieces of JSON text.
local function unquoted(before, message, after)
  message = message:gsub("\\\\", "\1"):gsub(": invalid value .* for type ", ": invalid value for type ")
  message = message:gsub("\\n.*", ""):gsub("\\u000a.*", ""):gsub("\1", "\\\\")
  return before .. message .. after
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get("x-request-id") or ""
  if #id > 128 or not id:match("^[!-~]+$") then  -- the same rule as in server/telemetry/correlation.py
    headers:replace("x-request-id", headers:get("x-atlas-new-id"))
  end
  headers:remove("x-atlas-new-id")
  if headers:get(":method") == "HEAD" then
    handle:streamInfo():dynamicMetadata():set("atlas", "head", true)
  end

  local content_type = headers:get("content-type") or ""
  if content_type:sub(1, 16) == "application/grpc" then
    handle:streamInfo():dynamicMetadata():set("atlas", "grpc", true)
    return
  end
  local timeout = headers:get("grpc-timeout")
  if timeout ~= nil and (#timeout > 9 or not timeout:match("^%d+[HMSmun]$")) then
    headers:remove("grpc-timeout")  -- gRPC would call it an internal error
  end
end

-- What a GET would have been answered, but for its body.
local function bodiless(handle)
  local length = handle:headers():get("x-atlas-length")
  local body = handle:body()
  if body ~= nil then body:setBytes("") end
  if length ~= nil then
    handle:headers():remove("x-atlas-length")
    handle:headers():replace("content-length", length)
  end
end

local function answer(handle)
  local headers = handle:headers()
  for _, name in ipairs({"grpc-status", "grpc-message", "grpc-accept-encoding", "grpc-status-details-bin"}) do
    headers:remove(name)
  end

  local chosen = headers:get("x-atlas-status")
  if chosen ~= nil then
    headers:remove("x-atlas-status")
    headers:replace(":status", chosen)
    return
  end

  -- {"code":5,"message":…} of the transcoder becomes {"error":{"code":"not_found","message":…}}.
  if tonumber(headers:get(":status")) < 400 or headers:get("content-type") ~= "application/json" then return end
  local body = handle:body()
  if body == nil then return end
  local text, found = body:getBytes(0, body:length()):gsub('^{"code":(%d+)', function(code)
    return '{"code":"' .. (names[code] or "unknown") .. '"'
  end, 1)
  if found == 1 then
    text = '{"error":' .. text .. "}"
  else
    text, found = text:gsub('^({"error":{"code":"invalid_argument","details":%[%],"message":")(.*)("}})', unquoted)
  end
  if found == 1 then
    local size = body:setBytes(text)
    handle:headers():replace("content-length", tostring(size))  -- body() invalidated the first handle
  end
end

function envoy_on_response(handle)
  local ours = handle:streamInfo():dynamicMetadata():get("atlas")
  if ours ~= nil and ours["grpc"] then return end
  answer(handle)
  if ours ~= nil and ours["head"] then bodiless(handle) end
end
