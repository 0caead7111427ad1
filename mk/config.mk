# Compilers and flags by VARIANT: release, debug, asan, ubsan, tsan.
CC ?= gcc
CXX ?= g++
ifeq ($(origin CC),default)
CC := gcc
endif
ifeq ($(origin CXX),default)
CXX := g++
endif

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wformat=2 -Wundef -Wvla -Wcast-qual \
	-Wwrite-strings
WARN_C := $(WARN) -Wstrict-prototypes -Wmissing-prototypes
ifdef CI
WARN += -Werror
WARN_C += -Werror
endif

HARDEN := -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fstack-clash-protection -fcf-protection
OPT_release := -O2 -g $(HARDEN)
OPT_debug := -O0 -g3
OPT_asan := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
OPT_ubsan := -O1 -g -fsanitize=undefined -fno-sanitize-recover=all
OPT_tsan := -O1 -g -fsanitize=thread
OPT := $(OPT_$(VARIANT))
ifeq ($(OPT),)
$(error VARIANT=$(VARIANT) is not one of release, debug, asan, ubsan, tsan)
endif

VERSION := $(shell cat VERSION 2>/dev/null || echo 0.0.0)
PKGS := libzmq libczmq libuv jansson libpcre2-8 libutf8proc libxxhash libcurl
# msgpack-c's pkg-config name differs between releases.
PKGS += $(shell for p in msgpack-c msgpack; do pkg-config --exists $$p 2>/dev/null && echo $$p && break; done)
PKG_CFLAGS := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags $(PKGS) 2>/dev/null))
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

# llhttp: Debian 12 ships its C sources inside node-llhttp, later releases a library.
LLHTTP_SRC := $(wildcard /usr/share/llhttp/llhttp.c)
ifneq ($(LLHTTP_SRC),)
LLHTTP_CFLAGS := -isystem /usr/share/include/llhttp
LLHTTP_DIR := /usr/share/llhttp
else
LLHTTP_LIBS := -lllhttp
endif

CPPFLAGS_ALL := -D_GNU_SOURCE -DPHALANX_VERSION='"$(VERSION)"' $(PKG_CFLAGS) $(CPPFLAGS)
CFLAGS_ALL = -std=c11 $(OPT) -fPIC -pthread $(WARN_C) $(CFLAGS)
CXXFLAGS_ALL = -std=c++17 $(OPT) -fPIC -pthread $(WARN) $(CXXFLAGS)
LDFLAGS_ALL = $(OPT) -pthread -Wl,-z,relro,-z,now -Wl,--as-needed $(LDFLAGS)
LIBS_ALL := $(PKG_LIBS) $(LLHTTP_LIBS) -ldl -lm

ifeq ($(V),0)
Q := @
say = @printf '  %-7s %s\n' $(1) $(2)
else
Q :=
say = @:
endif
