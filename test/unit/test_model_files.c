/*
 * test_model_files.c - damaged model directories: each is refused with a message that names the
 * file, the tensor or the key, and nothing crashes.
 *
 * Every test makes a directory from model-a's files, changes one thing and opens it.
 */
#include <unistd.h>

#include "engine.h"

/* A tensor that the damaged headers tell wrong things about. */
#define VICTIM "lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_q.weight"

/* The good files, read once. */
typedef struct Original
{
	char	   *bytes;			/* model.safetensors */
	size_t		size;
	uint64_t	header_size;
	json_t	   *header;
	json_t	   *config;
} Original;

static Original
original_open(void)
{
	Original	original;

	original.bytes = unit_read_file(MODEL_A "/model.safetensors", &original.size);
	memcpy(&original.header_size, original.bytes, sizeof(uint64_t));
	original.header = json_loadb(original.bytes + sizeof(uint64_t), (size_t) original.header_size,
								 0, NULL);
	original.config = golden_json(MODEL_A "/config.json");
	return original;
}

static void
original_close(Original *original)
{
	free(original->bytes);
	json_decref(original->header);
	json_decref(original->config);
}

/* A directory to be opened: its config and the parts of its model.safetensors. */
typedef struct Damage
{
	const json_t *config;
	uint64_t	said;			/* length of the header that the file tells */
	const char *header;			/* NULL: no model.safetensors at all */
	size_t		header_size;
	const char *data;
	size_t		data_size;
} Damage;

/* No damage: the original's parts. */
static Damage
no_damage(const Original *original)
{
	size_t		begin = sizeof(uint64_t) + (size_t) original->header_size;

	return (Damage){original->config,
					original->header_size,
					original->bytes + sizeof(uint64_t),
					(size_t) original->header_size,
					original->bytes + begin,
					original->size - begin};
}

static void
write_damage(const Damage *damage, const char *config, const char *tensors)
{
	FILE	   *file;

	if (json_dump_file(damage->config, config, 0) != 0)
		engine_bail(config, NULL);
	if (damage->header == NULL)
		return;
	file = fopen(tensors, "wb");
	if (file == NULL || fwrite(&damage->said, sizeof(uint64_t), 1, file) != 1 ||
		fwrite(damage->header, 1, damage->header_size, file) != damage->header_size ||
		fwrite(damage->data, 1, damage->data_size, file) != damage->data_size || fclose(file) != 0)
		engine_bail(tensors, NULL);
}

/* Open the directory; part has to be in message or detail. NULL: it has to open. */
static void
check_damage(const Damage *damage, const char *part)
{
	char		directory[] = "/tmp/mmgpt-model-XXXXXX";
	CpuOptions	cpu = {1, NULL};
	ModelOptions options = {.attend_previous = -1, .media_bytes = 1, .max_images = 1};
	char		config[64];
	char		tensors[64];
	char		text[STATUS_MESSAGE_SIZE + STATUS_DETAIL_SIZE];
	Backend    *backend;
	Model	   *model;
	Status		status;

	status_clear(&status);
	if (mkdtemp(directory) == NULL)
		engine_bail(directory, NULL);
	snprintf(config, sizeof(config), "%s/config.json", directory);
	snprintf(tensors, sizeof(tensors), "%s/model.safetensors", directory);
	write_damage(damage, config, tensors);
	backend = backend_open_cpu(&cpu, &status);
	if (backend == NULL)
		engine_bail("backend", &status);
	model = model_open(directory, backend, &options, &status);
	snprintf(text, sizeof(text), "%s %s", status.message, status.detail);
	if (part == NULL)
		UNIT_EQUAL_TEXT(text, " ");
	else if (UNIT_CHECK(model == NULL))
	{
		UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
		UNIT_CONTAINS(text, part);
	}
	model_close(model);
	backend->ops->close(backend);
	unlink(config);
	unlink(tensors);
	rmdir(directory);
}

UNIT_TEST(the_undamaged_copy_opens)
{
	Original	original = original_open();
	Damage		damage = no_damage(&original);

	check_damage(&damage, NULL);
	original_close(&original);
}

/* Bytes of model.safetensors in memory now, by /proc/self/smaps. */
static long
resident_bytes(void)
{
	char		line[512];
	bool		here = false;
	long		kilobytes = 0;
	FILE	   *file = fopen("/proc/self/smaps", "r");

	if (file == NULL)
		engine_bail("/proc/self/smaps", NULL);
	while (fgets(line, sizeof(line), file) != NULL)
	{
		if (strstr(line, "-") != NULL && strchr(line, '/') != NULL)
			here = strstr(line, "model.safetensors") != NULL;
		if (here && strncmp(line, "Rss:", 4) == 0)
			kilobytes += atol(line + 4);
	}
	fclose(file);
	return kilobytes * 1024;
}

/* Called after each tensor: keep the largest. */
static void
note_resident(void *argument, double fraction)
{
	long	   *largest = argument;
	long		now = resident_bytes();

	*largest = now > *largest ? now : *largest;
}

/* Add a tensor [rows, 96] to the header, behind the data of the others; *end moves. */
static void
add_large_tensor(json_t *header, const char *name, int rows, size_t *end)
{
	size_t		begin = *end;

	*end += (size_t) rows * 96 * sizeof(float);
	json_object_set_new(header, name,
						json_pack("{s:s, s:[i, i], s:[I, I]}", "dtype", "F32", "shape", rows, 96,
								  "data_offsets", (json_int_t) begin, (json_int_t) *end));
}

/*
 * Tensors leave memory when they are packed, so that loading never holds the model twice. The file
 * has two tensors of 23 MB, of zeros that take no place on the disk.
 */
UNIT_TEST(the_file_does_not_stay_in_memory_while_it_is_loaded)
{
	enum {VOCABULARY = 60000};
	Original	original = original_open();
	Damage		damage = no_damage(&original);
	size_t		end = damage.data_size;
	json_t	   *header = json_deep_copy(original.header);
	json_t	   *config = json_deep_copy(original.config);
	char		directory[] = "/tmp/mmgpt-model-XXXXXX";
	char		paths[2][64];
	CpuOptions	cpu = {1, NULL};
	long		largest = 0;
	ModelOptions options = {.progress = note_resident, .argument = &largest};
	Status		status;
	Backend    *backend = backend_open_cpu(&cpu, &status);
	Model	   *model;
	char	   *text;

	add_large_tensor(header, "lang_encoder.model.embed_tokens.weight", VOCABULARY, &end);
	add_large_tensor(header, "lang_encoder.lm_head.weight", VOCABULARY, &end);
	json_object_set_new(json_object_get(config, "llama"), "vocab_size", json_integer(VOCABULARY));
	text = json_dumps(header, 0);
	damage.config = config;
	damage.header = text;
	damage.said = damage.header_size = strlen(text);
	if (mkdtemp(directory) == NULL)
		engine_bail(directory, NULL);
	snprintf(paths[0], sizeof(paths[0]), "%s/config.json", directory);
	snprintf(paths[1], sizeof(paths[1]), "%s/model.safetensors", directory);
	write_damage(&damage, paths[0], paths[1]);
	if (truncate(paths[1], (off_t) (sizeof(uint64_t) + damage.said + end)) != 0)
		engine_bail(paths[1], NULL);
	model = model_open(directory, backend, &options, &status);
	if (model == NULL)
		engine_bail("model", &status);
	UNIT_CHECK(largest > 0);
	/* the system maps some megabytes around what is read; unreleased, all would be there */
	if (largest > (long) end / 3 * 2)
		UNIT_FAIL("%ld of the file's %zu bytes were in memory", largest, end);
	model_close(model);
	backend->ops->close(backend);
	unlink(paths[0]);
	unlink(paths[1]);
	rmdir(directory);
	free(text);
	json_decref(header);
	json_decref(config);
	original_close(&original);
}

UNIT_TEST(truncated_files_are_named)
{
	Original	original = original_open();
	Damage		damage = no_damage(&original);

	damage.data_size -= 1000;
	check_damage(&damage, "beyond the end of its file");
	damage.data_size = 0;
	check_damage(&damage, "model.safetensors");
	damage.header_size = 100;
	check_damage(&damage, "truncated");
	damage.header_size = 0;
	check_damage(&damage, "truncated");
	damage.header = NULL;
	check_damage(&damage, "holds no *.safetensors file");
	original_close(&original);
}

UNIT_TEST(a_wrong_length_of_the_header_is_no_crash)
{
	Original	original = original_open();
	Damage		damage = no_damage(&original);
	uint64_t	said = damage.said;
	const uint64_t lengths[] = {0, 1, said - 1, said + 1, UINT64_C(1) << 32, UINT64_C(1) << 62,
		UINT64_MAX};

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		damage.said = lengths[i];
		check_damage(&damage, "model.safetensors");
	}
	original_close(&original);
}

/* Replace one key of the victim's entry; value is JSON text, NULL removes the entry. */
static void
check_entry(const Original *original, const char *key, const char *value, const char *part)
{
	Damage		damage = no_damage(original);
	json_t	   *header = json_deep_copy(original->header);
	char	   *text;

	if (value == NULL)
		json_object_del(header, VICTIM);
	else
		json_object_set_new(json_object_get(header, VICTIM), key,
							json_loads(value, JSON_DECODE_ANY, NULL));
	text = json_dumps(header, 0);
	damage.header = text;
	damage.header_size = strlen(text);
	damage.said = damage.header_size;
	check_damage(&damage, part);
	free(text);
	json_decref(header);
}

UNIT_TEST(wrong_tensors_are_named)
{
	Original	original = original_open();

	check_entry(&original, "", NULL, "attn.to_q.weight\" is missing");
	check_entry(&original, "shape", "[96, 64]", VICTIM "\" has shape [96, 64], not [64, 96]");
	check_entry(&original, "shape", "[1, 2]", VICTIM);
	check_entry(&original, "shape", "[1099511627776, 1099511627776]", VICTIM);
	check_entry(&original, "shape", "[2147483647, 2147483647]", VICTIM);
	check_entry(&original, "shape", "[-64, -96]", VICTIM);
	check_entry(&original, "shape", "[64.0, 96]", VICTIM);
	check_entry(&original, "shape", "[]", VICTIM);
	check_entry(&original, "shape", "\"64\"", VICTIM);
	check_entry(&original, "dtype", "\"I64\"", VICTIM);
	check_entry(&original, "dtype", "7", VICTIM);
	check_entry(&original, "data_offsets", "[4611686018427387904, 4611686018427412480]", VICTIM);
	check_entry(&original, "data_offsets", "[-24576, 0]", VICTIM);
	check_entry(&original, "data_offsets", "[24576, 0]", VICTIM);
	check_entry(&original, "data_offsets", "[0]", VICTIM);
	original_close(&original);
}

UNIT_TEST(an_unknown_tensor_is_named)
{
	Original	original = original_open();
	Damage		damage = no_damage(&original);
	json_t	   *header = json_deep_copy(original.header);
	char	   *text;

	json_object_set(header, "surplus.weight", json_object_get(header, VICTIM));
	text = json_dumps(header, 0);
	damage.header = text;
	damage.header_size = strlen(text);
	damage.said = damage.header_size;
	check_damage(&damage, "\"surplus.weight\" is not part of the model");
	free(text);
	json_decref(header);
	original_close(&original);
}

/* Set one key of a section of config.json ("": the root) to a JSON value. */
static void
check_config(const Original *original, const char *section, const char *key, const char *value,
			 const char *part)
{
	Damage		damage = no_damage(original);
	json_t	   *config = json_deep_copy(original->config);
	json_t	   *object = section[0] != '\0' ? json_object_get(config, section) : config;

	json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, NULL));
	damage.config = config;
	check_damage(&damage, part);
	json_decref(config);
}

UNIT_TEST(wrong_settings_are_named)
{
	Original	original = original_open();

	check_config(&original, "llama", "hidden_size", "null", "llama.hidden_size");
	check_config(&original, "llama", "hidden_size", "1000000000", "llama.hidden_size");
	check_config(&original, "llama", "hidden_size", "-96", "llama.hidden_size");
	check_config(&original, "llama", "num_attention_heads", "7", "num_attention_heads");
	check_config(&original, "llama", "num_hidden_layers", "5", "model.layers.4.");
	check_config(&original, "llama", "num_hidden_layers", "3", "model.layers.3.");
	check_config(&original, "llama", "vocab_size", "1000000", "embed_tokens");
	check_config(&original, "llama", "vocab_size", "602", "special_ids");
	check_config(&original, "vision", "patch_size", "13", "vision.image_size");
	check_config(&original, "vision", "layers", "0", "vision.layers");
	check_config(&original, "vision", "width", "999936", "vision_encoder");
	check_config(&original, "perceiver", "num_latents", "999999", "perceiver.latents");
	check_config(&original, "cross_attention", "every_n_layers", "3",
				 "model.layers.2.gated_cross_attn_layer");
	check_config(&original, "special_ids", "image", "603", "special_ids");
	check_config(&original, "", "vision", "[]", "vision.image_size");
	check_config(&original, "", "separator", "5", "separator");
	check_config(&original, "", "prompts", "{\"classify_answer\": \"a label\"}", "classify_answer");
	check_config(&original, "", "prompts", "{\"yes_words\": []}", "prompts.yes_words");
	original_close(&original);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
