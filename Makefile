# Phalanx. `make help` lists the targets; the rules are in mk/.
VARIANT ?= release
PREFIX ?= /usr/local
V ?= 0
O ?= build
BUILD := $(O)/$(VARIANT)

.DEFAULT_GOAL := all

include mk/deps.mk
include mk/config.mk
include mk/rules.mk
include mk/cuda.mk
include mk/tests.mk
include mk/tools.mk
include mk/dist.mk
