#pragma once

#include "quickjs.h"

/* The object that prelude.js is given. Math.random becomes ours as well. */
JSValue natives(JSContext *ctx);
