/*
 * test_text.c - tokenizer and template; dialogues and answers are in test_dialogue.c.
 *
 * The golden tokenizer cases are what the original's tokenizer gave for two
 * vocabularies; the demo's reference dialogues hold the ids that the original
 * model was run with. Both must be met exactly.
 */
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "prompt_template.h"
#include "tokenizer.h"
#include "unit.h"

#define GOLDEN "test/golden/"
#define DEMO_MODEL "demo/model/"

/* A text of the test as a part. */
#define PART(literal) ((TextPart) {(literal), strlen(literal)})

static const TextPart absent = {NULL, 0};

/* Read a JSON file of the repository; ends the program when that fails. */
static json_t *
load_json(const char *path)
{
	json_error_t error;
	json_t	   *root = json_load_file(path, JSON_ALLOW_NUL, &error);

	if (root == NULL)
	{
		printf("Bail out! %s: %s\n", path, error.text);
		exit(2);
	}
	return root;
}

static int
get_int(const json_t *object, const char *key)
{
	return (int) json_integer_value(json_object_get(object, key));
}

/* The special ids that lie in an object as config.json and the golden cases have them. */
static SpecialTokens
get_special(const json_t *object)
{
	return (SpecialTokens) {
		.unk = get_int(object, "unk"), .bos = get_int(object, "bos"),
		.eos = get_int(object, "eos"), .endofchunk = get_int(object, "endofchunk"),
		.image = get_int(object, "image"), .pad = get_int(object, "pad"),
	};
}

/* Open a tokenizer or end the program. */
static Tokenizer *
open_tokenizer(const char *path, const SpecialTokens *special, int pieces)
{
	Status		status;
	Tokenizer  *tokenizer;

	status_clear(&status);
	tokenizer = tokenizer_open(path, special, pieces, &status);
	if (tokenizer == NULL)
	{
		printf("Bail out! %s\n", status.message);
		exit(2);
	}
	return tokenizer;
}

/* The tokenizer of a folder with config.json and tokenizer.model. */
static Tokenizer *
open_model_tokenizer(const char *folder)
{
	char		path[256];
	json_t	   *config;
	SpecialTokens special;
	Tokenizer  *tokenizer;

	snprintf(path, sizeof(path), "%sconfig.json", folder);
	config = load_json(path);
	special = get_special(json_object_get(config, "special_ids"));
	snprintf(path, sizeof(path), "%stokenizer.model", folder);
	tokenizer = open_tokenizer(path, &special,
							   get_int(json_object_get(config, "llama"), "base_vocab_size"));
	json_decref(config);
	return tokenizer;
}

/* Compare ids with a JSON array of numbers. */
static void
check_ids(const char *name, const int32_t *ids, int count, const json_t *expected)
{
	if ((size_t) count != json_array_size(expected))
	{
		UNIT_FAIL("%s: %d ids, not %zu", name, count, json_array_size(expected));
		return;
	}
	for (int i = 0; i < count; i++)
		if (ids[i] != json_integer_value(json_array_get(expected, (size_t) i)))
		{
			UNIT_FAIL("%s: id %d is %d, not %d", name, i, ids[i],
					  (int) json_integer_value(json_array_get(expected, (size_t) i)));
			return;
		}
}

/* Check that two lists are the same. */
static bool
same_ids(const TokenList *a, const TokenList *b)
{
	return a->count == b->count &&
		(a->count == 0 || memcmp(a->ids, b->ids, (size_t) a->count * sizeof(int32_t)) == 0);
}

/* Check the decoding of one golden case. */
static void
check_decode(const Tokenizer *tokenizer, const json_t *golden, Arena *arena)
{
	const json_t *ids = json_object_get(golden, "ids");
	const json_t *expected = json_object_get(golden, "decode");
	const char *name = json_string_value(json_object_get(golden, "name"));
	TokenList	list;
	Status		status;
	size_t		length;
	char	   *text;

	status_clear(&status);
	token_list_begin(&list, arena);
	for (size_t i = 0; i < json_array_size(ids); i++)
		token_list_add(&list, (int32_t) json_integer_value(json_array_get(ids, i)), &status);
	text = tokenizer_decode(tokenizer, list.ids, list.count, arena, &length, &status);
	if (text == NULL)
		UNIT_FAIL("%s: %s", name, status.message);
	else if (length != json_string_length(expected) ||
			 memcmp(text, json_string_value(expected), length) != 0)
		UNIT_FAIL("%s: decoded to \"%s\", not \"%s\"", name, text, json_string_value(expected));
	else
		UNIT_CHECK(text[length] == '\0');
}

/* Check the encoding of one golden case. */
static void
check_encode(const Tokenizer *tokenizer, const json_t *golden, Arena *arena)
{
	const json_t *text = json_object_get(golden, "text");
	const char *name = json_string_value(json_object_get(golden, "name"));
	TokenList	list;
	Status		status;

	status_clear(&status);
	token_list_begin(&list, arena);
	if (!tokenizer_encode_special(tokenizer, json_string_value(text), json_string_length(text),
								  &list, &status))
		UNIT_FAIL("%s: %s", name, status.message);
	else
		check_ids(name, list.ids, list.count, json_object_get(golden, "ids"));
}

/* Check all cases of one golden file with its vocabulary. */
static void
check_golden_tokenizer(const char *cases_path, const char *model_path)
{
	json_t	   *root = load_json(cases_path);
	const json_t *encode = json_object_get(root, "encode");
	const json_t *decode = json_object_get(root, "decode_only");
	SpecialTokens special = get_special(root);
	Tokenizer  *tokenizer = open_tokenizer(model_path, &special, get_int(root, "base_vocab_size"));
	Arena	   *arena = arena_create();

	UNIT_CHECK(json_array_size(encode) > 100 && json_array_size(decode) > 40);
	for (size_t i = 0; i < json_array_size(encode); i++)
	{
		check_encode(tokenizer, json_array_get(encode, i), arena);
		check_decode(tokenizer, json_array_get(encode, i), arena);
	}
	for (size_t i = 0; i < json_array_size(decode); i++)
		check_decode(tokenizer, json_array_get(decode, i), arena);
	arena_free(arena);
	tokenizer_close(tokenizer);
	json_decref(root);
}

UNIT_TEST(tokenizer_meets_golden_model_a)
{
	check_golden_tokenizer(GOLDEN "tokenizer/model-a.cases.json",
						   GOLDEN "model-a/tokenizer.model");
}

UNIT_TEST(tokenizer_meets_golden_32000)
{
	check_golden_tokenizer(GOLDEN "tokenizer/llama-style-32000.cases.json",
						   GOLDEN "tokenizer/llama-style-32000.model");
}

UNIT_TEST(plain_text_never_becomes_special)
{
	static const char *const texts[] = {"<s>", "</s>", "<unk>", "<PAD>", "<image>",
		"<|endofchunk|>", "<0x0A>", "a</s>b <image>", "</s></s>"};
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	Arena	   *arena = arena_create();

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
	{
		TokenList	list;
		Status		status;
		size_t		length;
		char	   *back;

		status_clear(&status);
		token_list_begin(&list, arena);
		UNIT_CHECK(tokenizer_encode_plain(tokenizer, texts[i], strlen(texts[i]), &list, &status));
		for (int k = 0; k < list.count; k++)
			if (tokenizer_is_special(tokenizer, list.ids[k]) || list.ids[k] == 13)
				UNIT_FAIL("%s gives id %d", texts[i], list.ids[k]);
		back = tokenizer_decode(tokenizer, list.ids, list.count, arena, &length, &status);
		UNIT_EQUAL_TEXT(back, texts[i]);
	}
	arena_free(arena);
	tokenizer_close(tokenizer);
}

UNIT_TEST(tokenizer_tells_about_its_pieces)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);

	UNIT_EQUAL_INT(tokenizer_base_vocabulary(tokenizer), 1277);
	UNIT_EQUAL_INT(tokenizer_special(tokenizer)->image, 1278);
	UNIT_EQUAL_TEXT(tokenizer_piece(tokenizer, 13), "<0x0A>");
	UNIT_EQUAL_TEXT(tokenizer_piece(tokenizer, 2), "</s>");
	UNIT_EQUAL_TEXT(tokenizer_piece(tokenizer, 1278), "<image>");
	UNIT_CHECK(tokenizer_piece(tokenizer, -1) == NULL);
	UNIT_CHECK(tokenizer_piece(tokenizer, 1280) == NULL);
	UNIT_CHECK(tokenizer_is_special(tokenizer, 0) && !tokenizer_is_special(tokenizer, 3));
	tokenizer_close(tokenizer);
}

UNIT_TEST(tokenizer_refuses_unknown_ids_and_broken_text)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	Arena	   *arena = arena_create();
	const int32_t unknown[] = {300, 1280};
	const int32_t negative[] = {-1};
	TokenList	list;
	Status		status;
	size_t		length;

	status_clear(&status);
	UNIT_CHECK(tokenizer_decode(tokenizer, unknown, 2, arena, &length, &status) == NULL);
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(status.message, "1280");
	UNIT_CHECK(tokenizer_decode(tokenizer, negative, 1, arena, &length, &status) == NULL);
	token_list_begin(&list, arena);
	UNIT_CHECK(!tokenizer_encode_plain(tokenizer, "ab\xC3", 3, &list, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_TEXT);
	UNIT_CONTAINS(status.message, "offset 2");
	UNIT_CHECK(!tokenizer_encode_special(tokenizer, "\x80", 1, &list, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_TEXT);
	arena_free(arena);
	tokenizer_close(tokenizer);
}

/* Check that opening fails and that the message holds all of the words. */
static void
check_open_fails(const char *path, const SpecialTokens *special, int pieces, const char *word)
{
	Status		status;
	Tokenizer  *tokenizer;

	status_clear(&status);
	tokenizer = tokenizer_open(path, special, pieces, &status);
	UNIT_CHECK(tokenizer == NULL);
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
	UNIT_CONTAINS(status.message, word);
	tokenizer_close(tokenizer);
}

UNIT_TEST(tokenizer_refuses_wrong_files)
{
	const char *path = DEMO_MODEL "tokenizer.model";
	SpecialTokens good = {0, 1, 2, 1277, 1278, 1279};
	SpecialTokens other_eos = {0, 1, 3, 1277, 1278, 1279};
	SpecialTokens inside = {0, 1, 2, 1276, 1278, 1279};
	SpecialTokens twice = {0, 1, 2, 1277, 1278, 1278};

	check_open_fails("test/golden/no-such-file", &good, 1277, "test/golden/no-such-file");
	check_open_fails("test/golden", &good, 1277, "not a regular file");
	check_open_fails("/dev/null", &good, 1277, "not a regular file");
	check_open_fails(DEMO_MODEL "config.json", &good, 1277, "not a SentencePiece model");
	check_open_fails(path, &good, 32000, "1277 pieces, but config.json promises 32000");
	check_open_fails(path, &other_eos, 1277, "\"eos\"");
	check_open_fails(path, &inside, 1277, "\"endofchunk\"");
	check_open_fails(path, &twice, 1277, "same id 1278");
}

UNIT_TEST(tokenizer_survives_truncated_files)
{
	SpecialTokens special = {0, 1, 2, 600, 601, 602};
	char		path[] = "/tmp/mmgpt_tokenizer_XXXXXX";
	int			file = mkstemp(path);
	size_t		length;
	char	   *bytes = unit_read_file(GOLDEN "model-a/tokenizer.model", &length);

	if (!UNIT_CHECK(file >= 0 && write(file, bytes, length) == (ssize_t) length))
		return;
	for (size_t size = length - 1; size > 0; size -= size > 61 ? 61 : size)
	{
		Status		status;
		Tokenizer  *tokenizer;

		status_clear(&status);
		UNIT_CHECK(ftruncate(file, (off_t) size) == 0);
		tokenizer = tokenizer_open(path, &special, 600, &status);
		UNIT_CHECK(tokenizer == NULL && status.code == STATUS_INVALID_MODEL);
		tokenizer_close(tokenizer);
	}
	close(file);
	unlink(path);
	free(bytes);
}

/* Check what is left of text after stripping both sides. */
static void
check_strip(const char *text, const char *expected)
{
	size_t		length;
	const char *start = tokenizer_strip(text, strlen(text), true, true, &length);

	if (length != strlen(expected) || memcmp(start, expected, length) != 0)
		UNIT_FAIL("\"%s\" stripped is \"%.*s\"", text, (int) length, start);
}

UNIT_TEST(strip_is_pythons)
{
	size_t		length;

	check_strip("", "");
	check_strip(" \n\t", "");
	check_strip("a", "a");
	check_strip("\x1C a b\x1F\x0B\x0C\r", "a b");
	check_strip("\xC2\xA0x\xC2\x85", "x");
	check_strip("\xE3\x80\x80x\xE2\x80\x8A\xE2\x80\xA8", "x");
	check_strip("\xE1\x9A\x80\xE2\x80\xAF\xE2\x81\x9F", "");
	check_strip("\xE2\x80\x8Bx\xEF\xBB\xBF", "\xE2\x80\x8Bx\xEF\xBB\xBF");
	check_strip("\x80", "\x80");
	UNIT_CHECK(strcmp(tokenizer_strip(" a ", 3, true, false, &length), "a ") == 0 && length == 2);
	UNIT_CHECK(strcmp(tokenizer_strip(" a ", 3, false, true, &length), " a ") == 0 && length == 2);
}

/* Encode a long text in bounded time and memory. */
static void
check_long_text(const Tokenizer *tokenizer, const char *unit_text, const char *name)
{
	const size_t length = 1000000;
	size_t		step = strlen(unit_text);
	char	   *text = malloc(length + step);
	Arena	   *arena = arena_create();
	TokenList	list;
	Status		status;
	size_t		filled = 0;
	clock_t		start = clock();

	while (filled + step <= length)
	{
		memcpy(text + filled, unit_text, step);
		filled += step;
	}
	status_clear(&status);
	token_list_begin(&list, arena);
	UNIT_CHECK(tokenizer_encode_plain(tokenizer, text, filled, &list, &status));
	UNIT_CHECK(list.count > 0 && list.count >= tokenizer_fewest_tokens(tokenizer, filled));
	printf("# %s: %zu bytes, %d tokens, %.2f s\n", name, filled, list.count,
		   (double) (clock() - start) / CLOCKS_PER_SEC);
	arena_free(arena);
	free(text);
}

UNIT_TEST(long_texts_encode)
{
	SpecialTokens special = {0, 1, 2, 32000, 32001, 32002};
	Tokenizer  *tokenizer = open_tokenizer(GOLDEN "tokenizer/llama-style-32000.model", &special,
										   32000);

	check_long_text(tokenizer, "The quick brown fox jumps over the lazy dog. ", "sentences");
	check_long_text(tokenizer, "a", "one letter");
	check_long_text(tokenizer, " ", "spaces");
	check_long_text(tokenizer, "\xF0\x9F\x98\x80", "emoji");
	tokenizer_close(tokenizer);
}

/*
 * Whatever stands where a long text is cut, the ids of its last words are those of
 * the last words alone.
 */
UNIT_TEST(cutting_long_texts_changes_nothing)
{
	static const char *const middles[] = {" b", "  b", "   b", " ", "  ", "\n b", "\xE2\x96\x81 b",
		"\xE2\x96\x81\xE2\x96\x81 b c", " \n b", "\xC2\xA0 b", " <s> b", " \xF0\x9F\x98\x80"};
	SpecialTokens special = {0, 1, 2, 32000, 32001, 32002};
	Tokenizer  *tokenizer = open_tokenizer(GOLDEN "tokenizer/llama-style-32000.model", &special,
										   32000);
	const size_t half = 65536;	/* what tokenizer_encode.c calls ENCODE_PART */
	char	   *text = malloc(half + 64);
	Arena	   *arena = arena_create();

	for (size_t i = 0; i < 4 * sizeof(middles) / sizeof(middles[0]); i++)
	{
		const char *middle = middles[i / 4];
		size_t		head = half - i % 4;
		size_t		length = head + strlen(middle);
		const char *tail;
		TokenList	whole;
		TokenList	small;
		Status		status;

		/* "xx " again and again, then a word that touches the middle. */
		for (size_t k = 0; k < head; k++)
			text[k] = k + 3 < head && k % 3 == 2 ? ' ' : 'x';
		memcpy(text + head, middle, length - head);
		status_clear(&status);
		token_list_begin(&whole, arena);
		token_list_begin(&small, arena);
		UNIT_CHECK(tokenizer_encode_plain(tokenizer, text, length, &whole, &status));
		/* The tail is below the size of a part and never cut; it begins with a word. */
		tail = text + (length - 65400) / 3 * 3;
		UNIT_CHECK(tail[-1] == ' ');
		UNIT_CHECK(tokenizer_encode_plain(tokenizer, tail, (size_t) (text + length - tail), &small,
										  &status));
		UNIT_CHECK(whole.count > small.count);
		if (memcmp(whole.ids + whole.count - small.count, small.ids,
				   (size_t) small.count * sizeof(int32_t)) != 0)
			UNIT_FAIL("case %zu differs", i);
	}
	arena_free(arena);
	free(text);
	tokenizer_close(tokenizer);
}

UNIT_TEST(endless_words_are_refused)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	char	   *text = malloc(TOKENIZER_MAX_WORD + 1);
	Arena	   *arena = arena_create();
	TokenList	list;
	Status		status;

	memset(text, 'a', TOKENIZER_MAX_WORD + 1);
	status_clear(&status);
	token_list_begin(&list, arena);
	UNIT_CHECK(!tokenizer_encode_plain(tokenizer, text, TOKENIZER_MAX_WORD + 1, &list, &status));
	UNIT_EQUAL_INT(status.code, STATUS_NOT_SUPPORTED);
	arena_free(arena);
	free(text);
	tokenizer_close(tokenizer);
}

/* A dialogue from golden rounds [[prompt, response], ...]; the last response is null. */
static Dialogue
dialogue_from_rounds(const json_t *rounds, bool has_image, Arena *arena)
{
	Dialogue	dialogue = {.count = (int) json_array_size(rounds), .has_image = has_image};

	dialogue.rounds = arena_take_array(arena, json_array_size(rounds), sizeof(DialogueRound));
	for (int i = 0; i < dialogue.count; i++)
	{
		const json_t *round = json_array_get(rounds, (size_t) i);

		dialogue.rounds[i].prompt = PART(json_string_value(json_array_get(round, 0)));
		if (i < dialogue.count - 1)
			dialogue.rounds[i].response = PART(json_string_value(json_array_get(round, 1)));
	}
	return dialogue;
}

/* True when the one image of a golden prompt, if any, stands in the first round. */
static bool
has_supported_images(const json_t *places)
{
	return json_array_size(places) == 0 ||
		(json_array_size(places) == 1 && json_integer_value(json_array_get(places, 0)) == 0);
}

/* The text of a setting, or the default. */
static const char *
setting_or(const json_t *settings, const char *key, const char *fallback)
{
	const char *value = json_string_value(json_object_get(settings, key));

	return value != NULL ? value : fallback;
}

/* Hold prompt_encode against the golden prompt's text, encoded by the tokenizer. */
static void
check_golden_prompt(const Tokenizer *tokenizer, const json_t *golden, Arena *arena)
{
	const json_t *settings = json_object_get(golden, "settings");
	const json_t *text = json_object_get(golden, "prompt");
	PromptTemplate prompt_template = prompt_template_default;
	Dialogue	dialogue = dialogue_from_rounds(json_object_get(golden, "rounds"),
												json_object_get(settings, "image_at") != NULL,
												arena);
	TokenList	expected;
	TokenList	actual;
	Status		status;

	prompt_template.user_prefix = setting_or(settings, "user", prompt_template.user_prefix);
	prompt_template.ai_prefix = setting_or(settings, "ai", prompt_template.ai_prefix);
	prompt_template.separator = setting_or(settings, "sep", prompt_template.separator);
	status_clear(&status);
	token_list_begin(&expected, arena);
	token_list_begin(&actual, arena);
	UNIT_CHECK(tokenizer_encode_special(tokenizer, json_string_value(text),
										json_string_length(text), &expected, &status));
	UNIT_CHECK(prompt_encode(tokenizer, &prompt_template, &dialogue, &actual, &status));
	if (!same_ids(&expected, &actual))
		UNIT_FAIL("%s differs", json_string_value(json_object_get(golden, "name")));
}

UNIT_TEST(prompts_meet_golden)
{
	Tokenizer  *tokenizer = open_model_tokenizer(GOLDEN "model-a/");
	json_t	   *root = load_json(GOLDEN "tokenizer/prompts.json");
	const json_t *cases = json_object_get(root, "cases");
	Arena	   *arena = arena_create();
	int			checked = 0;

	UNIT_EQUAL_TEXT(json_string_value(json_object_get(root, "template")),
					prompt_template_default.introduction);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(root, "separator")),
					prompt_template_default.separator);
	for (size_t i = 0; i < json_array_size(cases); i++)
	{
		const json_t *golden = json_array_get(cases, i);
		const json_t *settings = json_object_get(golden, "settings");
		const json_t *rounds = json_object_get(golden, "rounds");
		const json_t *first = json_array_get(json_array_get(rounds, 0), 0);

		/*
		 * Not ours on purpose: images in later rounds, forgotten rounds, and
		 * marks that a user typed.
		 */
		if (!has_supported_images(json_object_get(settings, "image_at")) ||
			json_object_get(settings, "buffer") != NULL ||
			strstr(json_string_value(first), "<image>") != NULL)
			continue;
		check_golden_prompt(tokenizer, golden, arena);
		checked++;
	}
	UNIT_EQUAL_INT(checked, 4);
	arena_free(arena);
	json_decref(root);
	tokenizer_close(tokenizer);
}

/* The history of a reference case as JSON text in the shape that dialogue_read reads. */
static char *
history_of_case(const json_t *rounds)
{
	json_t	   *array = json_array();
	char	   *text;

	for (size_t i = 0; i < json_array_size(rounds); i++)
		for (size_t k = 0; k < 2; k++)
			json_array_append_new(array, json_pack("{s:s, s:O}", "role",
												   k == 0 ? "user" : "assistant", "content",
												   json_array_get(json_array_get(rounds, i), k)));
	text = json_dumps(array, 0);
	json_decref(array);
	return text;
}

/* Hold one reference dialogue of the demo model against prompt and answer ids. */
static void
check_reference(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
				const json_t *golden, Arena *arena)
{
	const char *prompt = json_string_value(json_object_get(golden, "prompt"));
	char	   *history = history_of_case(json_object_get(golden, "history"));
	bool		has_image = !json_is_null(json_object_get(golden, "picture"));
	const char *answer = json_string_value(json_object_get(golden, "text"));
	Dialogue	dialogue;
	TokenList	ids;
	Status		status;
	size_t		length;
	char	   *text;

	status_clear(&status);
	token_list_begin(&ids, arena);
	if (!UNIT_CHECK(dialogue_read(history, strlen(history), PART(prompt), absent, has_image, arena,
								  &dialogue, &status)))
		return;
	UNIT_CHECK(prompt_encode(tokenizer, prompt_template, &dialogue, &ids, &status));
	check_ids(prompt, ids.ids, ids.count, json_object_get(golden, "prompt_ids"));
	UNIT_CHECK(prompt_fewest_tokens(tokenizer, &dialogue) < ids.count);
	token_list_begin(&ids, arena);
	UNIT_CHECK(prompt_encode_answer(tokenizer, prompt_template, &dialogue, PART(answer), &ids,
									&status));
	token_list_add(&ids, tokenizer_special(tokenizer)->eos, &status);
	check_ids(answer, ids.ids, ids.count, json_object_get(golden, "ids"));
	text = tokenizer_decode(tokenizer, ids.ids, ids.count, arena, &length, &status);
	UNIT_EQUAL_TEXT(text, answer);
	free(history);
}

UNIT_TEST(demo_dialogues_meet_reference)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	json_t	   *root = load_json(GOLDEN "demo/reference.json");
	const json_t *cases = json_object_get(root, "cases");
	PromptTemplate prompt_template = prompt_template_default;
	Arena	   *arena = arena_create();

	prompt_template.history_eos = true;
	UNIT_CHECK(json_array_size(cases) == 85);
	for (size_t i = 0; i < json_array_size(cases); i++)
		check_reference(tokenizer, &prompt_template, json_array_get(cases, i), arena);
	arena_free(arena);
	json_decref(root);
	tokenizer_close(tokenizer);
}

/* Hold prompt_encode against the whole prompt's text with marks. */
static void
check_prompt_text(const Tokenizer *tokenizer, bool history_eos, const Dialogue *dialogue,
				  const char *text)
{
	PromptTemplate prompt_template = prompt_template_default;
	Arena	   *arena = arena_create();
	TokenList	expected;
	TokenList	actual;
	Status		status;

	prompt_template.history_eos = history_eos;
	status_clear(&status);
	token_list_begin(&expected, arena);
	token_list_begin(&actual, arena);
	UNIT_CHECK(tokenizer_encode_special(tokenizer, text, strlen(text), &expected, &status));
	UNIT_CHECK(prompt_encode(tokenizer, &prompt_template, dialogue, &actual, &status));
	if (!same_ids(&expected, &actual))
		UNIT_FAIL("ids differ for: %s", text);
	arena_free(arena);
}

#define INTRODUCTION "Below is an instruction that describes a task. " \
	"Write a response that appropriately completes the request."

UNIT_TEST(prompts_have_inputs_and_ends)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	DialogueRound rounds[2] = {
		{PART(" Sum it up. "), PART("\xC3\xA4 b"), PART(" It is so.\xC2\xA0\n")},
		{PART(""), absent, absent},
	};
	Dialogue	dialogue = {rounds, 1, false};

	check_prompt_text(tokenizer, true, &dialogue,
					  INTRODUCTION "\n\n### Instruction:\n Sum it up. \n\n### Input:\n\xC3\xA4 b"
					  "\n\n### Response:\n");
	dialogue.count = 2;
	dialogue.has_image = true;
	check_prompt_text(tokenizer, true, &dialogue,
					  INTRODUCTION "\n\n### Image:\n<image>\n\n### Instruction:\n Sum it up. "
					  "\n\n### Input:\n\xC3\xA4 b\n\n### Response:\n It is so.\xC2\xA0\n</s>"
					  "\n\n### Instruction:\n\n\n### Response:\n");
	check_prompt_text(tokenizer, false, &dialogue,
					  INTRODUCTION "\n\n### Image:\n<image>\n\n### Instruction:\n Sum it up. "
					  "\n\n### Input:\n\xC3\xA4 b\n\n### Response:\n It is so.\xC2\xA0\n"
					  "\n\n### Instruction:\n\n\n### Response:\n");
	rounds[0].input = PART("");
	rounds[0].response = PART("");
	check_prompt_text(tokenizer, true, &dialogue,
					  INTRODUCTION "\n\n### Image:\n<image>\n\n### Instruction:\n Sum it up. "
					  "\n\n### Input:\n\n\n### Response:\n</s>"
					  "\n\n### Instruction:\n\n\n### Response:\n");
	tokenizer_close(tokenizer);
}

UNIT_TEST(marks_typed_by_users_stay_text)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	const SpecialTokens *special = tokenizer_special(tokenizer);
	DialogueRound rounds[2] = {
		{PART("where is <image> ?"), PART("<s><PAD>"), PART("there </s> <|endofchunk|>")},
		{PART("</s><image>"), absent, absent},
	};
	Dialogue	dialogue = {rounds, 2, true};
	PromptTemplate prompt_template = prompt_template_default;
	Arena	   *arena = arena_create();
	TokenList	ids;
	Status		status;
	int			images = 0;
	int			ends = 0;

	prompt_template.history_eos = true;
	status_clear(&status);
	token_list_begin(&ids, arena);
	UNIT_CHECK(prompt_encode(tokenizer, &prompt_template, &dialogue, &ids, &status));
	for (int i = 0; i < ids.count; i++)
	{
		images += ids.ids[i] == special->image;
		ends += ids.ids[i] == special->eos;
		UNIT_CHECK(ids.ids[i] != special->pad && ids.ids[i] != special->endofchunk);
	}
	UNIT_EQUAL_INT(images, 1);
	UNIT_EQUAL_INT(ends, 1);
	UNIT_EQUAL_INT(ids.ids[0], special->bos);
	arena_free(arena);
	tokenizer_close(tokenizer);
}

/* Answers of every kind join the prompt without changing its ids, in both kinds of history. */
static void
check_answers_join(Tokenizer *tokenizer)
{
	static const char *const answers[] = {"", "Yes", "no", " leading", "\n", "\n\n", "\nThe",
		"\xCC\x81", "\xE4\xBD\xA0\xE5\xA5\xBD", "\xF0\x9F\x98\x80", "\t", "###", "12", "</s>",
		"\xE2\x96\x81", "\r\n", "\xC2\xA0", "\xEF\xBB\xBF"};
	DialogueRound rounds[1] = {{PART("Is there a dog?"), absent, absent}};
	Dialogue	dialogue = {rounds, 1, true};
	PromptTemplate prompt_template = prompt_template_default;
	Arena	   *arena = arena_create();

	for (size_t i = 0; i < 2 * sizeof(answers) / sizeof(answers[0]); i++)
	{
		TextPart	answer = PART(answers[i / 2]);
		TokenList	ids;
		Status		status;

		dialogue.has_image = i % 2 == 0;
		status_clear(&status);
		token_list_begin(&ids, arena);
		if (!prompt_encode_answer(tokenizer, &prompt_template, &dialogue, answer, &ids, &status))
			UNIT_FAIL("\"%s\": %s", answer.text, status.message);
		UNIT_CHECK((ids.count > 0) == (answer.length > 0));
	}
	arena_free(arena);
	tokenizer_close(tokenizer);
}

UNIT_TEST(answers_join_prompts)
{
	SpecialTokens special = {0, 1, 2, 32000, 32001, 32002};

	check_answers_join(open_model_tokenizer(DEMO_MODEL));
	check_answers_join(open_model_tokenizer(GOLDEN "model-a/"));
	check_answers_join(open_tokenizer(GOLDEN "tokenizer/llama-style-32000.model", &special,
									  32000));
}

UNIT_TEST(prompts_refuse_broken_text)
{
	Tokenizer  *tokenizer = open_model_tokenizer(DEMO_MODEL);
	DialogueRound rounds[2] = {
		{PART("one"), absent, PART("tw\xFFo")},
		{PART("three"), absent, absent},
	};
	Dialogue	dialogue = {rounds, 2, false};
	Arena	   *arena = arena_create();
	TokenList	ids;
	Status		status;

	status_clear(&status);
	token_list_begin(&ids, arena);
	UNIT_CHECK(!prompt_encode(tokenizer, &prompt_template_default, &dialogue, &ids, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_TEXT);
	UNIT_EQUAL_TEXT(status.message, "response of round 1 is not valid UTF-8 at byte offset 2");
	rounds[0].response = PART("two");
	UNIT_CHECK(!prompt_encode_answer(tokenizer, &prompt_template_default, &dialogue,
									 PART("\xC0\xAF"), &ids, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_TEXT);
	dialogue.count = 0;
	UNIT_CHECK(!prompt_encode(tokenizer, &prompt_template_default, &dialogue, &ids, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INTERNAL);
	arena_free(arena);
	tokenizer_close(tokenizer);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
