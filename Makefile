# mmgpt: MultiModal-GPT inside PostgreSQL.
#
#	make			the engine and the extension
#	make engine		build/mmgpt-engine only; needs no PostgreSQL
#	make test		everything, tested (SANITIZE=1: under address and undefined-behaviour sanitizers)
#	make install	into the server that PG_CONFIG names (DESTDIR is honoured)
#	make demo		a private server with pictures to ask about
#
# Who may include whom is enforced here: each folder is compiled with the
# include paths of the folders below it and no others.

PG_CONFIG ?= pg_config
BUILD ?= build
CC ?= cc
CXX ?= c++
CFLAGS_COMMON := -O2 -g -std=c11 -D_GNU_SOURCE -fvisibility=hidden -Wall -Wextra -Wdeclaration-after-statement \
	-Wno-unused-parameter -Wvla -Wshadow -Wstrict-prototypes -fno-math-errno -pthread
ENGINE_LIBS := -lsentencepiece -ljpeg -lpng -ljansson -lseccomp -lm -lstdc++

ifdef SANITIZE
BUILD := build/sanitize
SANITIZER_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CFLAGS_COMMON += $(SANITIZER_FLAGS)
endif

# include paths: what each folder may see
SEE_base := -Isrc/base
SEE_wire := $(SEE_base) -Isrc/wire
SEE_image := $(SEE_base) -Isrc/image
SEE_text := $(SEE_base) -Isrc/text
SEE_tensor := $(SEE_base) -Isrc/tensor
SEE_model := $(SEE_tensor) -Isrc/model
SEE_serve := $(SEE_model) -Isrc/wire -Isrc/image -Isrc/text -Isrc/serve
SEE_cli := $(SEE_serve) -Isrc/cli

ENGINE_FOLDERS := base wire image text tensor model serve cli
ENGINE_SOURCES := $(foreach f,$(ENGINE_FOLDERS),$(wildcard src/$(f)/*.c)) src/text/sentencepiece_shim.cc
ENGINE_OBJECTS := $(patsubst src/%,$(BUILD)/%.o,$(ENGINE_SOURCES))

$(BUILD)/tensor/kernels_avx2.c.o: ISA_FLAGS := -mavx2 -mfma
$(BUILD)/tensor/kernels_avx512.c.o: ISA_FLAGS := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512

.PHONY: engine
engine: $(BUILD)/mmgpt-engine

$(BUILD)/mmgpt-engine: $(ENGINE_OBJECTS)
	$(CC) $(SANITIZER_FLAGS) -pthread -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/%.c.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_COMMON) $(ISA_FLAGS) -MMD -MP $(SEE_$(firstword $(subst /, ,$*))) -c -o $@ $<

$(BUILD)/%.cc.o: src/%.cc
	@mkdir -p $(@D)
	$(CXX) -O2 -g -std=c++17 -fvisibility=hidden -Wall -Wextra $(SANITIZER_FLAGS) -MMD -MP $(SEE_$(firstword $(subst /, ,$*))) -c -o $@ $<

-include $(ENGINE_OBJECTS:.o=.d)
