/*
 * fuzz_adapter.c - damaged adapters must be refused or taken, and never more.
 *
 *	fuzz_adapter COUNT [SEED [NUMBER]]
 *
 * A turn damages the config of an adapter for model-a, or the header of its safetensors file,
 * checks both against the model as an import does, and loads what is taken, as a request does.
 */
#include "adapter_variants.h"
#include "engine.h"
#include "fuzz.h"

static const char config_text[] =
	"{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"bias\": \"none\", "
	"\"use_dora\": false, \"rank_pattern\": {}, \"modules_to_save\": null, \"target_modules\": [\"q_proj\", \"ff.1\"]}";

static Engine engine;
static AdapterVariant golden;

/* The golden file with a damaged header; sometimes its length does not tell. */
static FuzzText
damage_tensors(uint64_t *state)
{
	uint64_t	length;
	FuzzText	header;
	FuzzText	whole;
	size_t		data;

	memcpy(&length, golden.tensors, 8);
	data = golden.content.tensors_length - 8 - length;
	header = fuzz_text(golden.tensors + 8, length);
	fuzz_damage(&header, state);
	length = header.length + (fuzz_draw(state, 8) == 0 ? fuzz_draw(state, 1000) - 500 : 0);
	whole.length = whole.room = 8 + header.length + data;
	whole.bytes = malloc(whole.length);
	memcpy(whole.bytes, &length, 8);
	memcpy(whole.bytes + 8, header.bytes, header.length);
	memcpy(whole.bytes + 8 + header.length,
		   golden.tensors + golden.content.tensors_length - data, data);
	free(header.bytes);
	if (fuzz_draw(state, 8) == 0)
		whole.length = fuzz_draw(state, whole.length);
	fuzz_tighten(&whole);
	return whole;
}

/* Check files, and load them: what the check takes must load, and be as it said. */
static bool
check_content(const AdapterContent *content)
{
	AdapterDescription description;
	Adapter    *adapter;
	Status		status;
	bool		checked;

	status_clear(&status);
	checked = adapter_check_content(engine.model, content, &description, &status);
	if (!checked && ((status.code != STATUS_INVALID_MODEL && status.code != STATUS_NOT_SUPPORTED) ||
					 !fuzz_says_why(&status)))
		return fuzz_broken("the failure of a check");
	if (checked && (description.rank < 1 || !(description.alpha > 0) || description.targets == 0 ||
					description.parameters * 4 > content->tensors_length * 2))
		return fuzz_broken("the description of an adapter");
	status_clear(&status);
	adapter = adapter_open_content(engine.model, content, &status);
	if (adapter == NULL)
		return !checked ? fuzz_says_why(&status) : fuzz_broken("an adapter that does not load");
	adapter_close(engine.model, adapter);
	return true;
}

static bool
run_turn(uint64_t *state)
{
	FuzzText	config = fuzz_text(config_text, strlen(config_text));
	FuzzText	tensors;
	AdapterContent content = golden.content;
	bool		good;

	if (fuzz_draw(state, 2) == 0)
	{
		fuzz_damage(&config, state);
		tensors = fuzz_text(golden.tensors, golden.content.tensors_length);
		fuzz_tighten(&tensors);
	}
	else
		tensors = damage_tensors(state);
	fuzz_tighten(&config);
	content = (AdapterContent) {config.bytes, config.length, (uint8_t *) tensors.bytes,
		tensors.length};
	good = check_content(&content);
	free(config.bytes);
	free(tensors.bytes);
	return good;
}

int
main(int argc, char **argv)
{
	int			result;

	engine = engine_open(MODEL_A, "portable", 1, -1);
	golden = variant_make(GOLDEN_ALPHA, NULL);
	result = fuzz_run(argc, argv, run_turn);
	variant_free(&golden);
	engine_close(&engine);
	return result;
}
