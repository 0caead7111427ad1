# What must be on the machine, and running the demo. mk/install-deps.sh has the names.
#
# The flags of mk/config.mk come from pkg-config when make starts. Whatever follows an installation
# is therefore a new make.
.PHONY: deps test-deps run

deps:
	@mk/install-deps.sh build

test-deps:
	@mk/install-deps.sh build test
	$(Q)$(MAKE) --no-print-directory $(O)/venv/ready

$(O)/venv/ready: tests/requirements.txt
	@echo "Preparing $(O)/venv: $$(tr '\n' ' ' <$<)"
	$(Q)python3 -m venv $(O)/venv
	$(Q)$(O)/venv/bin/python -m pip install -q --disable-pip-version-check -r $<
	$(Q)touch $@

# All cores, unless make was told how many.
JOBS = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

# Serves the demo model on the CPU. make run ARGS="--port 8000"
run: deps
	$(Q)$(MAKE) --no-print-directory $(JOBS) all
	@exec $(BUILD)/bin/phalanx serve --model-path deploy/demo-model --device cpu --tp 2 $(ARGS)
