# Installing, the relocatable bundle, the source archive.
BINDIR = $(DESTDIR)$(PREFIX)/bin
LIBDIR = $(DESTDIR)$(PREFIX)/lib/phalanx
MANDIR = $(DESTDIR)$(PREFIX)/share/man/man1
DATADIR = $(DESTDIR)$(PREFIX)/share/phalanx
DEMO_FILES = $(filter-out %.py,$(wildcard deploy/demo-model/*))
# Page names and the commands that print them.
MAN_PAGES := phalanx phalanx-serve phalanx-chat phalanx-bench phalanx-keygen phalanx-status \
	phalanx-gateway phalanx-tokenizer phalanx-scheduler phalanx-worker
MAN_COMMAND_phalanx-serve := phalanx serve
MAN_COMMAND_phalanx-chat := phalanx chat
MAN_COMMAND_phalanx-bench := phalanx bench
MAN_COMMAND_phalanx-keygen := phalanx keygen
MAN_COMMAND_phalanx-status := phalanx status

.PHONY: man install uninstall bundle dist
man: $(MAN_PAGES:%=$(BUILD)/man/%.1)

$(BUILD)/man/%.1: $(PROGRAMS:%=$(BIN)/%)
	@mkdir -p $(@D)
	$(Q)$(BIN)/$(or $(MAN_COMMAND_$*),$*) --man >$@.new && mv $@.new $@

# The page of all options that deploy/ carries; a test says when it is out of date.
.PHONY: conf
conf: $(BIN)/phalanx
	$(Q)$(BIN)/phalanx serve --conf >deploy/cluster.conf

install: all man
	$(Q)install -d $(BINDIR) $(LIBDIR) $(MANDIR) $(DATADIR)/demo-model
	$(Q)install -m 755 $(PROGRAMS:%=$(BIN)/%) $(BINDIR)
	$(Q)install -m 644 $(wildcard $(LIB)/libphalanx-*.so) $(LIBDIR)
	$(Q)install -m 644 $(MAN_PAGES:%=$(BUILD)/man/%.1) $(MANDIR)
	$(Q)install -m 644 $(DEMO_FILES) $(DATADIR)/demo-model
	@echo "Installed in $(DESTDIR)$(PREFIX). Try: $(PREFIX)/bin/phalanx serve --model $(PREFIX)/share/phalanx/demo-model"

uninstall:
	$(Q)rm -f $(PROGRAMS:%=$(BINDIR)/%) $(MAN_PAGES:%=$(MANDIR)/%.1)
	$(Q)rm -rf $(LIBDIR) $(DATADIR)

# bin + lib + model, with every shared library but glibc's; works wherever it is moved.
bundle: all
	$(Q)mk/bundle.sh $(BUILD) $(O)/bundle
	$(Q)mkdir -p $(O)/bundle/share/phalanx/demo-model
	$(Q)cp $(DEMO_FILES) $(O)/bundle/share/phalanx/demo-model
	@echo "$(O)/bundle: $$(du -sh $(O)/bundle | cut -f1), $$(ls $(O)/bundle/lib | wc -l) libraries"

# Containers: up and ready, down, and the whole way as a test.
.PHONY: compose compose-down compose-test
COMPOSE_PROFILES ?= cpu
compose:
	$(Q)deploy/compose.sh build $(COMPOSE_PROFILES)
	$(Q)deploy/compose.sh up $(COMPOSE_PROFILES)
	$(Q)deploy/compose.sh wait $(COMPOSE_PROFILES)

compose-down:
	$(Q)deploy/compose.sh down $(COMPOSE_PROFILES)

compose-test:
	$(Q)PYTHON=$(O)/venv/bin/python deploy/compose-test.sh

dist:
	$(Q)mkdir -p $(O)
	$(Q)git archive --format=tar.gz --prefix=phalanx-$(VERSION)/ -o $(O)/phalanx-$(VERSION).tar.gz HEAD
	@echo "$(O)/phalanx-$(VERSION).tar.gz"
