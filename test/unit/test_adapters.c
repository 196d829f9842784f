/*
 * test_adapters.c - adapters from memory, the set that holds them, and answers of requests with
 * different adapters: the same bits in company as alone, whatever was kept of others.
 */
#include "adapter_set.h"
#include "adapter_variants.h"
#include "golden_cases.h"

#define VARIANTS 4				/* none, all, another alpha, without to_kv */
#define NEW_TOKENS 12

static Engine
open_engine(void)
{
	return engine_open(MODEL_A, "auto", 2, 0);
}

static Adapter *
open_variant(Engine *engine, const AdapterVariant *variant)
{
	Adapter    *adapter = adapter_open_content(engine->model, &variant->content, &engine->status);

	if (adapter == NULL)
		engine_bail("adapter", &engine->status);
	return adapter;
}

/* ---- files ---- */

UNIT_TEST(memory_and_directory_give_the_same_adapter)
{
	ForwardCases cases = open_cases();
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	char		directory[] = "/tmp/mmgpt-adapter-XXXXXX";
	Adapter    *adapters[2];
	float	   *logits[2];
	Picture		pictures[4];
	int			picture_count = case_pictures(&cases, find_case(&cases, "vision_one_round"),
											  pictures);
	int			count;
	const int32_t *ids = golden_values(&cases.tensors, "vision_one_round", ".ids", &count);

	engine_make_adapter(directory);
	adapters[0] = adapter_open(engine.model, directory, &engine.status);
	adapters[1] = open_variant(&engine, &variant);
	for (int i = 0; i < 2; i++)
		logits[i] = engine_forward(&engine, pictures, picture_count, adapters[i], ids, count, 256);
	UNIT_CHECK(memcmp(logits[0], logits[1],
					  (size_t) count * (size_t) engine.config->decoder.vocabulary *
					  sizeof(float)) == 0);
	for (int i = 0; i < 2; i++)
	{
		free(logits[i]);
		adapter_close(engine.model, adapters[i]);
	}
	engine_remove_adapter(directory);
	variant_free(&variant);
	engine_close(&engine);
	close_cases(&cases);
}

UNIT_TEST(a_check_tells_what_an_adapter_is)
{
	Engine		engine = open_engine();
	AdapterVariant all = variant_make(GOLDEN_ALPHA, NULL);
	AdapterVariant part = variant_make(2.5, "to_kv");
	AdapterDescription description[2];
	unsigned	to_kv;
	int			i = 0;

	UNIT_CHECK(adapter_check_content(engine.model, &all.content, &description[0], &engine.status));
	UNIT_EQUAL_INT(description[0].rank, 4);
	UNIT_NEAR(description[0].alpha, GOLDEN_ALPHA, 0);
	UNIT_EQUAL_INT(description[0].parameters, 24064);	/* bytes of all tensors / 4 */
	UNIT_CHECK(adapter_check_content(engine.model, &part.content, &description[1],
									 &engine.status));
	UNIT_NEAR(description[1].alpha, 2.5, 0);
	to_kv = description[0].targets ^ description[1].targets;
	while (to_kv != 1u << i)
		i++;
	UNIT_EQUAL_TEXT(adapter_target_name(i), "to_kv");
	UNIT_CHECK(strcmp(all.digest, part.digest) != 0);
	variant_free(&all);
	variant_free(&part);
	engine_close(&engine);
}

/* Files that are refused, with a code and texts of message and detail. */
static void
check_refused(Engine *engine, const AdapterVariant *variant, StatusCode code, const char *message,
			  const char *detail)
{
	AdapterDescription description;
	Status		status;

	status_clear(&status);
	UNIT_CHECK(!adapter_check_content(engine->model, &variant->content, &description, &status));
	UNIT_EQUAL_INT(status.code, code);
	UNIT_CONTAINS(status.message, message);
	UNIT_CONTAINS(status.detail, detail);
}

static void
check_config_refused(Engine *engine, const char *config, StatusCode code, const char *message)
{
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);

	variant.content.config = config;
	variant.content.config_length = strlen(config);
	check_refused(engine, &variant, code, message, "");
	variant_free(&variant);
}

UNIT_TEST(configs_that_mean_something_else_are_refused)
{
	Engine		engine = open_engine();

	check_config_refused(&engine, "{", STATUS_INVALID_MODEL, "not valid JSON");
	check_config_refused(&engine, "[4]", STATUS_INVALID_MODEL, "not a JSON object");
	check_config_refused(&engine, "{\"lora_alpha\": 8}", STATUS_INVALID_MODEL, "\"r\"");
	check_config_refused(&engine, "{\"r\": 0, \"lora_alpha\": 8}", STATUS_INVALID_MODEL, "\"r\"");
	check_config_refused(&engine, "{\"r\": 257, \"lora_alpha\": 8}", STATUS_INVALID_MODEL, "\"r\"");
	check_config_refused(&engine, "{\"r\": 4}", STATUS_INVALID_MODEL, "\"lora_alpha\"");
	check_config_refused(&engine, "{\"r\": 4, \"lora_alpha\": -8}", STATUS_INVALID_MODEL,
						 "\"lora_alpha\"");
	check_config_refused(&engine, "{\"r\": 8, \"lora_alpha\": 8}", STATUS_INVALID_MODEL,
						 "has rank 4, and \"r\" is 8");
	check_config_refused(&engine, "{\"r\": 4, \"lora_alpha\": 8, \"peft_type\": \"IA3\"}",
						 STATUS_NOT_SUPPORTED, "IA3");
	check_config_refused(&engine, "{\"r\": 4, \"lora_alpha\": 8, \"use_rslora\": true}",
						 STATUS_NOT_SUPPORTED, "\"use_rslora\"");
	check_config_refused(&engine, "{\"r\": 4, \"lora_alpha\": 8, \"bias\": \"all\"}",
						 STATUS_NOT_SUPPORTED, "\"bias\"");
	check_config_refused(&engine, "{\"r\": 4, \"lora_alpha\": 8, \"alpha_pattern\": {\"q\": 1}}",
						 STATUS_NOT_SUPPORTED, "\"alpha_pattern\"");
	engine_close(&engine);
}

UNIT_TEST(what_peft_writes_by_default_is_taken)
{
	static const char config[] =
		"{\"alora_invocation_tokens\": null, \"alpha_pattern\": {}, \"bias\": \"none\", "
		"\"fan_in_fan_out\": false, \"lora_alpha\": 8, \"lora_bias\": false, "
		"\"modules_to_save\": null, \"peft_type\": \"LORA\", \"r\": 4, \"rank_pattern\": {}, "
		"\"use_dora\": false, \"use_rslora\": false}";
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	AdapterDescription description;

	variant.content.config = config;
	variant.content.config_length = strlen(config);
	UNIT_CHECK(adapter_check_content(engine.model, &variant.content, &description,
									 &engine.status));
	variant_free(&variant);
	engine_close(&engine);
}

UNIT_TEST(tensors_that_do_not_fit_are_named)
{
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	float		infinity = INFINITY;

	variant.content.tensors_length = 1000;
	check_refused(&engine, &variant, STATUS_INVALID_MODEL, "truncated", "1000");
	variant_free(&variant);
	variant = variant_make(GOLDEN_ALPHA, "layers.0.decoder_layer.self_attn.q_proj.lora_B");
	check_refused(&engine, &variant, STATUS_INVALID_MODEL, "model.layers.0.self_attn.q_proj",
				  "has no lora_B");
	variant_free(&variant);
	variant = variant_make(GOLDEN_ALPHA, NULL);
	for (int i = 0; i < 2; i++)	/* both of a pair */
		variant_replace(&variant, "layers.0.decoder_layer.self_attn.k_proj",
						"layers.9.decoder_layer.self_attn.k_proj");
	check_refused(&engine, &variant, STATUS_INVALID_MODEL, "has no place in the model", "");
	variant_free(&variant);
	variant = variant_make(GOLDEN_ALPHA, "lora_");
	check_refused(&engine, &variant, STATUS_INVALID_MODEL, "no tensors", "");
	variant_free(&variant);
	variant = variant_make(GOLDEN_ALPHA, NULL);
	memcpy(variant.tensors + variant.content.tensors_length - 4, &infinity, 4);
	check_refused(&engine, &variant, STATUS_INVALID_MODEL, "not finite", "");
	variant_free(&variant);
	engine_close(&engine);
}

/* ---- the set ---- */

static AdapterKey
make_key(uint64_t owner, const AdapterVariant *variant)
{
	AdapterKey	key = {.owner = owner};

	adapter_content_digest(&variant->content, key.digest);
	return key;
}

/* Load a variant for an owner; NULL where it has to wait. */
static Adapter *
load(AdapterSet *set, Engine *engine, uint64_t owner, const AdapterVariant *variant)
{
	AdapterKey	key = make_key(owner, variant);
	Adapter    *adapter = NULL;

	status_clear(&engine->status);
	adapter_set_load(set, engine->model, &key, &variant->content, &adapter, &engine->status);
	return adapter;
}

/* Whether the set has a variant for an owner. */
static bool
holds(AdapterSet *set, uint64_t owner, const AdapterVariant *variant)
{
	AdapterKey	key = make_key(owner, variant);
	Adapter    *adapter = adapter_set_take(set, &key);

	adapter_set_release(set, adapter);
	return adapter != NULL;
}

UNIT_TEST(an_adapter_is_held_for_who_brought_it)
{
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	AdapterVariant other = variant_make(1, NULL);
	AdapterSet *set = adapter_set_create((size_t) 1 << 30, &engine.status);
	AdapterCounters counters;
	Adapter    *adapter = load(set, &engine, 7, &variant);

	UNIT_CHECK(adapter != NULL);
	UNIT_CHECK(load(set, &engine, 7, &variant) == adapter);
	UNIT_CHECK(holds(set, 7, &variant));
	UNIT_CHECK(!holds(set, 8, &variant));
	UNIT_CHECK(!holds(set, 7, &other));
	adapter_set_counters(set, &counters);
	UNIT_EQUAL_INT(counters.held, 1);
	UNIT_EQUAL_INT(counters.loaded, 1);
	UNIT_EQUAL_INT(counters.bytes, adapter_bytes(adapter));
	adapter_set_release(set, adapter);
	adapter_set_release(set, adapter);
	adapter_set_free(set, engine.model);
	variant_free(&variant);
	variant_free(&other);
	engine_close(&engine);
}

UNIT_TEST(the_least_recently_used_goes_and_one_in_use_stays)
{
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	Adapter    *measured = open_variant(&engine, &variant);
	AdapterSet *set = adapter_set_create(5 * adapter_bytes(measured) / 2, &engine.status);
	Adapter    *first = load(set, &engine, 1, &variant);
	Adapter    *second = load(set, &engine, 2, &variant);
	Adapter    *third;
	AdapterCounters counters;

	/* two fit, and both are in use: a third one has to wait, which is no failure */
	UNIT_CHECK(load(set, &engine, 3, &variant) == NULL);
	UNIT_CHECK(status_good(&engine.status));
	adapter_set_release(set, second);
	third = load(set, &engine, 3, &variant);
	UNIT_CHECK(third != NULL);
	UNIT_CHECK(holds(set, 1, &variant) && !holds(set, 2, &variant));
	adapter_set_release(set, first);
	adapter_set_release(set, third);
	/* the third was used last */
	adapter_set_release(set, load(set, &engine, 2, &variant));
	UNIT_CHECK(!holds(set, 1, &variant) && holds(set, 2, &variant) && holds(set, 3, &variant));
	adapter_set_counters(set, &counters);
	UNIT_EQUAL_INT(counters.held, 2);
	UNIT_EQUAL_INT(counters.evicted, 2);
	UNIT_CHECK(counters.bytes <= counters.limit);
	adapter_set_free(set, engine.model);
	adapter_close(engine.model, measured);
	variant_free(&variant);
	engine_close(&engine);
}

UNIT_TEST(one_that_can_never_fit_is_refused)
{
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	AdapterSet *set = adapter_set_create(50000, &engine.status);

	UNIT_CHECK(load(set, &engine, 1, &variant) == NULL);
	UNIT_EQUAL_INT(engine.status.code, STATUS_OUT_OF_MEMORY);
	UNIT_CONTAINS(engine.status.hint, "mmgpt.memory_limit");
	adapter_set_free(set, engine.model);
	variant_free(&variant);
	engine_close(&engine);
}

UNIT_TEST(damaged_files_leave_nothing_behind)
{
	Engine		engine = open_engine();
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	AdapterSet *set = adapter_set_create((size_t) 1 << 30, &engine.status);
	AdapterCounters counters;

	variant_replace(&variant, "layers.0.decoder_layer", "layers.9.decoder_layer");
	UNIT_CHECK(load(set, &engine, 1, &variant) == NULL);
	UNIT_EQUAL_INT(engine.status.code, STATUS_INVALID_MODEL);
	adapter_set_counters(set, &counters);
	UNIT_EQUAL_INT(counters.held, 0);
	UNIT_EQUAL_INT(counters.bytes, 0);
	adapter_set_free(set, engine.model);
	variant_free(&variant);
	engine_close(&engine);
}

/* ---- answers ---- */

/* A question with and without a picture, and the variants that it is asked with. */
typedef struct Asked
{
	ForwardCases cases;
	Engine		engine;
	AdapterVariant variants[VARIANTS];	/* [0] is not used: no adapter */
	Adapter    *adapters[VARIANTS];
	Picture		pictures[4];
	RequestOptions options;
} Asked;

static Asked
open_asked(void)
{
	Asked		asked = {.cases = open_cases(), .engine = open_engine()};

	asked.variants[1] = variant_make(GOLDEN_ALPHA, NULL);
	asked.variants[2] = variant_make(4 * GOLDEN_ALPHA, NULL);
	asked.variants[3] = variant_make(GOLDEN_ALPHA, "to_kv");
	for (int i = 1; i < VARIANTS; i++)
		asked.adapters[i] = open_variant(&asked.engine, &asked.variants[i]);
	case_pictures(&asked.cases, find_case(&asked.cases, "vision_one_round"), asked.pictures);
	request_options_defaults(&asked.options);
	asked.options.max_tokens = NEW_TOKENS;
	return asked;
}

static void
close_asked(Asked *asked)
{
	for (int i = 1; i < VARIANTS; i++)
	{
		adapter_close(asked->engine.model, asked->adapters[i]);
		variant_free(&asked->variants[i]);
	}
	engine_close(&asked->engine);
	close_cases(&asked->cases);
}

/*
 * A question of an owner with a variant, as a request makes it: pictures have the adapter only
 * where it changes them. Owner 0: nothing of it is kept.
 */
static Generation *
ask(Asked *asked, uint64_t owner, int variant, bool picture)
{
	Engine	   *engine = &asked->engine;
	Adapter    *adapter = asked->adapters[variant];
	PictureSet *set = picture ? arena_take(engine->arena, sizeof(PictureSet)) : NULL;
	Generation *generation;
	int			count;
	const int32_t *ids = golden_values(&asked->cases.tensors,
									   picture ? "vision_one_round" : "language_only", ".ids",
									   &count);

	if (picture)
	{
		set->pictures = asked->pictures;
		set->count = 1;
		set->has_key = owner != 0;
		memcpy(set->key, &owner, sizeof(owner));
		if (adapter != NULL && adapter_changes_pictures(adapter))
			set->adapter = adapter;
	}
	asked->options.adapter = adapter;
	generation = engine_generation(engine, ids, count, set, &asked->options);
	generation->adapter = adapter;
	generation->owner = owner;
	generation->eos = -1;
	return generation;
}

static bool
same_bits(const Generation *a, const Generation *b)
{
	return a->count == b->count &&
		memcmp(a->tokens, b->tokens, (size_t) a->count * sizeof(int32_t)) == 0 &&
		memcmp(a->log_probabilities, b->log_probabilities, (size_t) a->count * sizeof(float)) == 0;
}

UNIT_TEST(only_adapters_on_to_kv_change_pictures)
{
	Asked		asked = open_asked();

	UNIT_CHECK(adapter_changes_pictures(asked.adapters[1]));
	UNIT_CHECK(!adapter_changes_pictures(asked.adapters[3]));
	close_asked(&asked);
}

UNIT_TEST(different_adapters_in_one_batch_change_no_bit)
{
	Asked		asked = open_asked();
	Generation *alone[2 * VARIANTS];
	Generation *together[4 * VARIANTS];
	SchedulerCounters counters;

	for (int i = 0; i < 2 * VARIANTS; i++)
	{
		alone[i] = ask(&asked, 0, i % VARIANTS, i < VARIANTS);
		engine_run(&asked.engine, &alone[i], 1, NULL);
	}
	for (int i = 0; i < 4 * VARIANTS; i++)
		together[i] = ask(&asked, 0, i % VARIANTS, i / VARIANTS % 2 == 0);
	engine_run(&asked.engine, together, 4 * VARIANTS, &counters);
	for (int i = 0; i < 4 * VARIANTS; i++)
		UNIT_CHECK(same_bits(together[i], alone[i % (2 * VARIANTS)]));
	UNIT_CHECK(counters.rows > 4 * counters.steps);
	/* and each of them does something of its own, about a picture */
	for (int i = 0; i < VARIANTS; i++)
		for (int j = 0; j < i; j++)
			UNIT_CHECK(alone[i]->log_probabilities[0] != alone[j]->log_probabilities[0]);
	close_asked(&asked);
}

/* Run questions one after another on one scheduler. */
static void
run_in_turn(Scheduler *scheduler, Generation **generations, int count)
{
	for (int i = 0; i < count; i++)
	{
		generations[i]->finished = engine_finished;
		generations[i]->argument = scheduler;
		scheduler_submit(scheduler, generations[i]);
		while (scheduler_step(scheduler))
			;
	}
}

UNIT_TEST(kept_pictures_and_beginnings_belong_to_their_adapter)
{
	Asked		asked = open_asked();
	Scheduler  *scheduler = scheduler_create(asked.engine.model, asked.engine.tokenizer,
											 &(SchedulerOptions) {0}, &asked.engine.status);
	Generation *fresh[VARIANTS];
	Generation *kept[2 * VARIANTS];
	SchedulerCounters counters;

	for (int i = 0; i < VARIANTS; i++)
		fresh[i] = ask(&asked, 0, i, true);
	run_in_turn(scheduler, fresh, VARIANTS);
	scheduler_counters(scheduler, &counters);
	UNIT_EQUAL_INT(counters.images_encoded, VARIANTS);
	for (int i = 0; i < 2 * VARIANTS; i++)
		kept[i] = ask(&asked, 1, i % VARIANTS, true);
	run_in_turn(scheduler, kept, 2 * VARIANTS);
	for (int i = 0; i < 2 * VARIANTS; i++)
		UNIT_CHECK(same_bits(kept[i], fresh[i % VARIANTS]));
	scheduler_counters(scheduler, &counters);
	/* none and "without to_kv" share the picture; the second round finds all */
	UNIT_EQUAL_INT(counters.images_encoded, VARIANTS + 3);
	UNIT_EQUAL_INT(counters.images_found, 1 + VARIANTS);
	/* a beginning is that of the same adapter only */
	UNIT_EQUAL_INT(counters.prompt_tokens_reused, VARIANTS * (kept[0]->prompt_count - 1));
	scheduler_free(scheduler);
	close_asked(&asked);
}

UNIT_TEST(another_adapter_at_the_same_address_finds_nothing)
{
	Asked		asked = open_asked();
	Scheduler  *scheduler = scheduler_create(asked.engine.model, asked.engine.tokenizer,
											 &(SchedulerOptions) {0}, &asked.engine.status);
	Generation *generations[4];

	generations[0] = ask(&asked, 0, 2, true);
	generations[1] = ask(&asked, 1, 1, true);
	run_in_turn(scheduler, generations, 2);
	/* what an evicted and a newly loaded adapter may come to: another one at its address */
	adapter_close(asked.engine.model, asked.adapters[1]);
	asked.adapters[1] = open_variant(&asked.engine, &asked.variants[2]);
	generations[2] = ask(&asked, 1, 1, true);
	/* and the first one again at another address: what was kept of it is found */
	adapter_close(asked.engine.model, asked.adapters[2]);
	asked.adapters[2] = open_variant(&asked.engine, &asked.variants[1]);
	generations[3] = ask(&asked, 1, 2, true);
	run_in_turn(scheduler, generations + 2, 2);
	UNIT_CHECK(same_bits(generations[2], generations[0]));
	UNIT_CHECK(same_bits(generations[3], generations[1]));
	scheduler_free(scheduler);
	close_asked(&asked);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
