/*
 * request_run.c - the tasks: what the scheduler is asked to do for each kind of request, and
 * what its results mean. Runs on the scheduler's thread.
 *
 *	chat, caption	one generation, its text
 *	count			a greedy generation, its first number; if there is none, a second one in
 *					which only digits may be chosen
 *	score, filter	log-probabilities of the yes and no words as the beginning of the answer
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"

/* Digits that an integer can have. */
#define COUNT_MAX_DIGITS 9

/* One of the config's yes and no words, as the answer's first tokens. */
typedef struct ScoreWord
{
	TokenList	ids;
	bool		yes;
	bool		dropped;		/* it begins with another word of the same verdict */
	int			generation;		/* that scores it */
	int			alternative;	/* its last token's place there */
} ScoreWord;

static void
complete(Request *request)
{
	scheduler_release_pictures(request->scheduler, &request->pictures);
	request->done(request, request->argument);
}

static void
fail(Request *request, const Status *status)
{
	request->status = *status;
	request->answered = false;
	complete(request);
}

/* ---- answers of one generation ---- */

static bool
write_text_answer(Request *request, const Generation *generation)
{
	const char *finish = finish_name(generation->finish);
	WireField	field = WIRE_FIELD_TEXT;
	size_t		length;
	char	   *text = generation_text(generation, request->context->tokenizer, &length,
									   &request->status);

	if (text == NULL)
		return false;
	if (request->kind == WIRE_KIND_CHAT_TURN)
	{
		field = WIRE_FIELD_JSON;
		text = dialogue_write(&request->dialogue, (TextPart){text, length}, request->arena, &length,
							  &request->status);
	}
	if (text == NULL || !request_begin_answer(request, length + WIRE_REQUEST_OVERHEAD))
		return false;
	wire_write_bytes(&request->answer, field, text, length);
	wire_write_bytes(&request->answer, WIRE_FIELD_FINISH, finish, strlen(finish));
	wire_write_u32(&request->answer, WIRE_FIELD_PROMPT_TOKENS, (uint32_t) generation->prompt_count);
	wire_write_u32(&request->answer, WIRE_FIELD_NEW_TOKENS, (uint32_t) generation->count);
	return true;
}

static void submit_generation(Request *request);

/* The number in an answer, or another try with digits only. */
static bool
write_count_answer(Request *request, const Generation *generation, bool *again)
{
	size_t		length;
	int			number;
	char	   *text = generation_text(generation, request->context->tokenizer, &length,
									   &request->status);

	*again = false;
	if (text == NULL)
		return false;
	if (!answer_find_number(text, length, &number))
	{
		*again = !request->counting_digits;
		if (*again)
			return true;
		return status_set(&request->status, STATUS_INTERNAL,
						  "the model gave no number that fits an integer");
	}
	if (!request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		return false;
	wire_write_i64(&request->answer, WIRE_FIELD_INTEGER, number);
	return true;
}

static void
generation_finished(Generation *generation, void *argument)
{
	Request    *request = argument;
	bool		again = false;
	bool		good;

	request->new_tokens += generation->count;
	if (generation->finish == FINISH_FAILED)
	{
		fail(request, &generation->status);
		return;
	}
	if (generation->finish == FINISH_CANCELLED)
	{
		complete(request);
		return;
	}
	if (request->kind == WIRE_KIND_COUNT)
		good = write_count_answer(request, generation, &again);
	else
		good = write_text_answer(request, generation);
	if (again)
	{
		request->counting_digits = true;
		submit_generation(request);
		return;
	}
	request->answered = good;
	complete(request);
}

/* Hand a generation of the request's prompt to the scheduler. */
static void
submit_generation(Request *request)
{
	Generation *generation = arena_take(request->arena, sizeof(Generation));
	RequestOptions *options = &request->options;

	if (request->counting_digits)
		options->max_tokens = COUNT_MAX_DIGITS;
	if (generation == NULL)
	{
		status_out_of_memory(&request->status, sizeof(Generation));
		complete(request);
		return;
	}
	if (!generation_begin(generation, request->arena, request->context->config, request->ids.ids,
						  request->ids.count,
						  request->pictures.count > 0 ? &request->pictures : NULL, options,
						  &request->status))
	{
		complete(request);
		return;
	}
	if (request->counting_digits)
	{
		generation->allowed_first = request->context->digits_first;
		generation->allowed_rest = request->context->digits_rest;
	}
	generation->owner = request->owner;
	generation->cancelled = &request->cancelled;
	generation->finished = generation_finished;
	generation->argument = request;
	scheduler_submit(request->scheduler, generation);
}

/* ---- scores ---- */

/* Token ids of all yes and no words. */
static bool
encode_words(Request *request)
{
	const PromptConfig *prompts = &request->context->config->prompts;
	int			count = prompts->yes_words.count + prompts->no_words.count;

	request->words = arena_take_array(request->arena, (size_t) count, sizeof(ScoreWord));
	if (request->words == NULL)
		return status_out_of_memory(&request->status, (size_t) count * sizeof(ScoreWord));
	for (int i = 0; i < count; i++)
	{
		ScoreWord  *word = &request->words[i];
		const char *text;

		word->yes = i < prompts->yes_words.count;
		text = word->yes ? prompts->yes_words.words[i]
						 : prompts->no_words.words[i - prompts->yes_words.count];
		token_list_begin(&word->ids, request->arena);
		if (!prompt_encode_answer(request->context->tokenizer, &request->context->prompt_template,
								  &request->dialogue, (TextPart){text, strlen(text)}, &word->ids,
								  &request->status))
			return false;
	}
	request->word_count = count;
	return true;
}

/* An answer that begins with a longer word begins with its beginning too, and counts once. */
static void
drop_longer_words(Request *request)
{
	for (int i = 0; i < request->word_count; i++)
		for (int j = 0; j < request->word_count; j++)
		{
			const TokenList *longer = &request->words[i].ids;
			const TokenList *shorter = &request->words[j].ids;

			if (i == j || request->words[j].dropped ||
				request->words[i].yes != request->words[j].yes || shorter->count > longer->count ||
				(shorter->count == longer->count && i < j))
				continue;
			if (memcmp(shorter->ids, longer->ids, (size_t) shorter->count * sizeof(int32_t)) == 0)
				request->words[i].dropped = true;
		}
}

static double
word_probability(const Request *request, const ScoreWord *word)
{
	const Generation *generation = &request->generations[word->generation];

	return exp(generation->chain + generation->alternative[word->alternative]);
}

/* p(yes) / (p(yes) + p(no)) when all words are scored. */
static void
write_score(Request *request)
{
	double		yes = 0;
	double		no = 0;
	double		score;

	for (int i = 0; i < request->word_count; i++)
	{
		const ScoreWord *word = &request->words[i];

		if (word->dropped)
			continue;
		*(word->yes ? &yes : &no) += word_probability(request, word);
	}
	score = yes + no > 0 ? yes / (yes + no) : 0.5;
	if (!request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		return;
	wire_write_f64(&request->answer, WIRE_FIELD_REAL, score);
	wire_write_u32(&request->answer, WIRE_FIELD_BOOLEAN, score >= request->options.threshold);
}

static void
score_finished(Generation *generation, void *argument)
{
	Request    *request = argument;

	if (generation->finish == FINISH_FAILED && status_good(&request->status))
		request->status = generation->status;
	if (--request->unfinished > 0)
		return;
	if (status_good(&request->status) && !atomic_load(&request->cancelled))
		write_score(request);
	complete(request);
}

/*
 * The generation that scores words whose tokens but the last equal the word's; a new one if there
 * is none yet.
 */
static Generation *
find_prefix(Request *request, const ScoreWord *word)
{
	int			chain = word->ids.count - 1;
	size_t		bytes = (size_t) chain * sizeof(int32_t);
	Generation *generation;
	int32_t    *prompt;

	for (int i = 0; i < request->generation_count; i++)
	{
		generation = &request->generations[i];
		if (generation->chain_count == chain &&
			generation->alternative_count < GENERATION_MAX_ALTERNATIVES &&
			memcmp(generation->prompt + request->ids.count, word->ids.ids, bytes) == 0)
			return generation;
	}
	prompt = arena_take_array(request->arena, (size_t) request->ids.count + (size_t) chain,
							  sizeof(int32_t));
	if (prompt == NULL)
	{
		status_out_of_memory(&request->status, bytes);
		return NULL;
	}
	memcpy(prompt, request->ids.ids, (size_t) request->ids.count * sizeof(int32_t));
	memcpy(prompt + request->ids.count, word->ids.ids, bytes);
	generation = &request->generations[request->generation_count];
	if (!generation_begin(generation, request->arena, request->context->config, prompt,
						  request->ids.count + chain,
						  request->pictures.count > 0 ? &request->pictures : NULL,
						  &request->options, &request->status))
		return NULL;
	generation->scoring = true;
	generation->chain_count = chain;
	generation->owner = request->owner;
	generation->cancelled = &request->cancelled;
	generation->finished = score_finished;
	generation->argument = request;
	request->generation_count++;
	return generation;
}

static bool
plan_scores(Request *request)
{
	if (!encode_words(request))
		return false;
	drop_longer_words(request);
	request->generations = arena_take_array(request->arena, (size_t) request->word_count,
											sizeof(Generation));
	if (request->generations == NULL)
		return status_out_of_memory(&request->status,
									(size_t) request->word_count * sizeof(Generation));
	for (int i = 0; i < request->word_count; i++)
	{
		ScoreWord  *word = &request->words[i];
		Generation *generation;

		if (word->dropped || word->ids.count < 1)
		{
			word->dropped = true;
			continue;
		}
		generation = find_prefix(request, word);
		if (generation == NULL)
			return false;
		word->generation = (int) (generation - request->generations);
		word->alternative = generation->alternative_count;
		generation->alternatives[generation->alternative_count++] = word->ids
																		.ids[word->ids.count - 1];
	}
	return true;
}

static void
submit_scores(Request *request)
{
	if (!plan_scores(request) || request->generation_count == 0)
	{
		complete(request);
		return;
	}
	request->unfinished = request->generation_count;
	for (int i = 0; i < request->generation_count; i++)
		scheduler_submit(request->scheduler, &request->generations[i]);
}

void
request_run(Request *request, Scheduler *scheduler, void (*done)(Request *request, void *argument),
			void *argument)
{
	request->scheduler = scheduler;
	request->done = done;
	request->argument = argument;
	request->prompt_tokens = request->ids.count;
	if (request->kind == WIRE_KIND_SCORE || request->kind == WIRE_KIND_FILTER)
		submit_scores(request);
	else
		submit_generation(request);
}
